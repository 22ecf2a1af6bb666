import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from randbp.cli.errors import UsageError
from randbp.cli.main import main
from randbp.cli.sweep_file import SweepFile, command_line, read_sweep, version_name

ROOT = Path(__file__).parents[2]
TINY = {
    "model": {
        "class_path": "experiments.task.Classification",
        "init_args": {
            "num_classes": 4,
            "model": {
                "class_path": "experiments.models.DigitsCNN",
                "init_args": {"num_classes": 4, "in_channels": 3, "width": 4},
            },
        },
    },
    "data": {
        "class_path": "experiments.data.GeneratedImages",
        "init_args": {"num_classes": 4, "size": 8, "train_size": 72, "test_size": 40, "batch_size": 16},
    },
    "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False},
}
SWEEP = {
    "name": "tiny",
    "command": ["${env}", "randbp", "fit", "--wandb=disabled", "${args}"],
    "method": "grid",
    "parameters": {
        "config": {"values": ["a.yaml", "b.yaml"]},
        "tensor_dropout.weight_vjp": {"value": "Spatial"},
        "tensor_dropout.weight_vjp.keep": {"value": 0.5},
        "seed_everything": {"value": 7},
    },
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, from which the checkout can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def status(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["status"]


def test_a_failing_run_leaves_the_others_and_resume_makes_only_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write(here / "sweep.yaml", SWEEP)
    write(here / "a.yaml", TINY)
    assert main(["sweep", str(sweep), "--trainer.max_epochs=1"]) == 1
    out = capsys.readouterr().out
    runs = here / "runs" / "tiny"
    assert (status(runs / "config=a.yaml"), status(runs / "config=b.yaml")) == ("finished", "failed")
    assert "[1/2] config=a.yaml  finished" in out
    assert "[2/2] config=b.yaml  FAILED" in out
    assert "config=b.yaml: randbp fit: " in out and "(log: runs/tiny/logs/config=b.yaml.log)" in out
    assert "b.yaml" in (runs / "logs" / "config=b.yaml.log").read_text()
    assert "1/2" in (runs / "report.html").read_text()
    finished = json.loads((runs / "config=a.yaml" / "summary.json").read_text())
    assert finished["estimators"]["weight_vjp"]["keep"] == 0.5
    assert finished["run"]["seed"] == 7
    assert finished["progress"]["epochs"] == 1  # the extra option reached the run
    assert (runs / "config=a.yaml" / "config.yaml").exists()

    before = {path: path.read_bytes() for path in (runs / "config=a.yaml").rglob("*") if path.is_file()}
    assert main(["sweep", str(sweep), "--trainer.max_epochs=1"]) == 2  # no overwriting
    assert "runs/tiny exists and is left as it is" in capsys.readouterr().err
    assert main(["sweep", str(sweep), "--resume", "--trainer.max_epochs=2"]) == 2  # no mixing
    assert "runs/tiny/config=a.yaml was made by another command" in capsys.readouterr().err

    write(here / "b.yaml", TINY)
    assert main(["sweep", str(sweep), "--resume", "--trainer.max_epochs=1"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 runs are finished already" in out
    assert "[2/2] config=b.yaml  finished" in out and "config=a.yaml  finished" not in out
    assert status(runs / "config=b.yaml") == "finished"
    assert before == {path: path.read_bytes() for path in (runs / "config=a.yaml").rglob("*") if path.is_file()}
    assert status(runs / ".unfinished" / "config=b.yaml") == "failed"
    assert (runs / ".unfinished" / "config=b.yaml" / "config=b.yaml.log").exists()


SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = Path(given["trainer.default_root_dir"], given["name"], given["version"])
folder.mkdir(parents=True)
def tell(status):
    summary = {"status": status, "run": {}, "cost": {"held_bytes": 1}}
    (folder / "summary.json").write_text(json.dumps(summary))
tell("running")
Path(f"began-{given['what']}").touch()
if given["what"] == "kill": os.kill(os.getpid(), signal.SIGKILL)
if given["what"] == "silent": sys.exit(3)
if given["what"] == "speak": print("noise"); sys.exit("the last word")
if given["what"] == "lazy": time.sleep(60)
other = {"meet": "meet2", "meet2": "meet"}.get(given["what"])
deadline = time.monotonic() + 30
while other and not Path(f"began-{other}").exists():  # finishes only beside another that does the same
    if time.monotonic() > deadline: sys.exit("alone")
    time.sleep(0.01)
tell("finished")
"""


def script_sweep(folder: Path, *what: str) -> Path:
    """A sweep over quick processes that end in one way or another."""
    (folder / "script.py").write_text(SCRIPT)
    command = ["${env}", "${interpreter}", "${program}", "${args}"]
    parameters = {"what": {"values": list(what)}, "fixed": {"value": 1}}
    return write(
        folder / "quick.yaml",
        {"program": "script.py", "command": command, "method": "grid", "parameters": parameters},
    )


def test_every_way_to_fail_is_on_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(script_sweep(here, "kill", "silent", "speak", "fine"))]) == 1
    errors = {}
    for path in (here / "runs" / "quick").glob("*/summary.json"):
        summary = json.loads(path.read_text())
        errors[path.parent.name] = summary.get("error")
        assert summary["cost"] == {"held_bytes": 1}  # what was known stays
    assert errors == {
        "what=kill": "ended by signal 9",
        "what=silent": "exit code 3",
        "what=speak": "the last word",
        "what=fine": None,
    }
    out = capsys.readouterr().out
    assert "3 of 4 runs did not finish" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("[")] == [
        "[1/4]",
        "[2/4]",
        "[3/4]",
        "[4/4]",
    ]


def test_jobs_run_side_by_side(here: Path) -> None:
    assert main(["sweep", str(script_sweep(here, "meet", "meet2")), "--jobs=2", "--name=other"]) == 0
    assert status(here / "runs" / "other" / "what=meet") == "finished"


def test_interrupting_keeps_what_is_there(here: Path) -> None:
    sweep = script_sweep(here, "fine", "lazy", "kill")
    command = [sys.executable, "-m", "randbp.cli.main", "sweep", str(sweep)]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where the tests run in the background
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listening)
    deadline = time.monotonic() + 60
    while not (here / "began-lazy").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    runs = here / "runs" / "quick"
    assert (status(runs / "what=fine"), status(runs / "what=lazy")) == ("finished", "failed")
    assert not (runs / "what=kill").exists()
    assert "what=kill: not started" in out
    assert (runs / "report.html").exists()


def test_two_sweeps_do_not_share_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = script_sweep(here, "fine")
    (here / "runs" / "quick").mkdir(parents=True)
    with FileLock(here / "runs" / "quick" / ".lock"):
        assert main(["sweep", str(sweep), "--resume"]) == 2
    assert "another sweep is working there" in capsys.readouterr().err


values = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(0.001, 1), st.sampled_from(["Spatial", "a b", "x/y"]))
keys = st.lists(st.sampled_from(["a", "b", "c.keep", "d.keep", "d.e.keep"]), min_size=1, unique=True)


@given(st.data())
def test_a_grid_has_every_combination_once_under_its_own_name(data: st.DataObject) -> None:
    parameters: dict[str, Any] = {}
    for key in data.draw(keys):
        choices = data.draw(st.lists(values, min_size=1, max_size=3, unique_by=str))
        parameters[key] = {"values": choices} if len(choices) > 1 or data.draw(st.booleans()) else {"value": choices[0]}
    sweep = SweepFile("x", "grid", parameters)
    runs = list(sweep.runs())
    sizes = [len(it.get("values", "1")) for it in parameters.values()]
    assert len({str(run) for run in runs}) == len(runs) == math.prod(sizes)
    for key, description in parameters.items():
        assert {str(run[key]) for run in runs} == {
            str(v) for v in description.get("values", [description.get("value")])
        }
    names = [version_name(sweep, run) for run in runs]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and " " not in name for name in names)


@given(st.dictionaries(st.sampled_from(["a", "b.c", "d"]), values, max_size=3))
def test_command_line_is_that_of_a_wandb_agent(parameters: dict[str, Any]) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    theirs = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in parameters.items()}})
    for macro in ("args", "args_no_boolean_flags"):
        command = ("${env}", "${interpreter}", "${program}", "x", f"${{{macro}}}", "${envvar:HOME}")
        ours = command_line(SweepFile("x", "grid", {}, command, program="p.py"), parameters)
        expanded = utils.create_sweep_command(list(command))
        assert ours == [sys.executable, "p.py", "x", *theirs[macro], expanded[-1]]
    default = command_line(SweepFile("x", "grid", {}, program="p.py"), parameters)
    assert default == [sys.executable, "p.py", *theirs["args"]]


def test_random_draws_are_repeatable_and_within_bounds() -> None:
    parameters = {
        "choice": {"values": ["a", "b", "c"], "probabilities": [0.5, 0.5, 0.0]},
        "whole": {"min": 2, "max": 4},
        "real": {"min": 0.5, "max": 1.0},
        "rate": {"min": 1e-4, "max": 1e-1, "distribution": "log_uniform_values"},
        "fixed": {"value": 3},
    }
    sweep = SweepFile("x", "random", parameters, run_cap=300)
    runs = list(sweep.runs())
    assert len(runs) == 300 and runs == list(sweep.runs())
    assert list(sweep.runs(seed=1)) != runs and len(list(sweep.runs(count=5))) == 5
    assert {run["choice"] for run in runs} == {"a", "b"}
    assert {run["whole"] for run in runs} == {2, 3, 4}
    assert all(0.5 <= run["real"] <= 1.0 and 1e-4 <= run["rate"] <= 1e-1 and run["fixed"] == 3 for run in runs)
    assert 0.35 < sum(run["rate"] < 10**-2.5 for run in runs) / 300 < 0.65  # the middle of the logarithms
    with pytest.raises(UsageError, match="--count"):
        list(SweepFile("x", "random", parameters).runs())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "expected a W&B sweep file"),
        ("{method: grid}", "expected a W&B sweep file"),
        ("{method: bayes, parameters: {a: {value: 1}}}", "method='bayes', expected grid or random"),
        ("{method: grid, parameters: {a: {min: 0, max: 1}}}", "parameters.a=.*expected value or values$"),
        ("{method: grid, parameters: {a: {values: []}}}", "parameters.a=.*expected value or values$"),
        ("{method: grid, parameters: {a: {parameters: {b: {value: 1}}}}}", "parameters.a: nested"),
        ("{method: random, parameters: {a: {min: 0, max: 1, distribution: beta}}}", "distribution='beta', expected"),
        ("{method: grid, parameters: {a: {value: 1}}, command: randbp}", "command='randbp', expected a list"),
    ],
)
def test_what_a_sweep_file_may_not_say(here: Path, content: str, message: str) -> None:
    path = here / "sweep.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_sweep(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_options_end_in_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = script_sweep(here, "fine")
    for options, message in (
        ([str(here / "none.yaml")], "none.yaml: No such file"),
        ([str(sweep), "--jobs=0"], "--jobs=0, expected"),
        ([str(sweep), "--count=0"], "--count=0, expected"),
    ):
        assert main(["sweep", *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    macro = SweepFile("x", "grid", {}, command=("randbp", "${args_json_file}"))
    with pytest.raises(UsageError, match=r"\$\{args_json_file\} has no meaning here"):
        command_line(macro, {})
    assert not (here / "runs").exists()
