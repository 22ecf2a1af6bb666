import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from randbp.cli import run_folder, sweep_execution
from randbp.cli.main import main
from randbp.cli.run_folder import owned
from tests.cli import kill_sweep
from tests.cli.test_child import all_end, number_in

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
    monkeypatch.setattr(sweep_execution, "POLL_SECONDS", 0.02)
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
    out, err = capsys.readouterr()
    runs = here / "runs" / "tiny"
    assert (status(runs / "config=a.yaml"), status(runs / "config=b.yaml")) == ("finished", "failed")
    assert "[1/2] config=a.yaml  finished" in out
    assert "[2/2] config=b.yaml  FAILED" in out
    assert err.startswith("randbp sweep: config=b.yaml: randbp fit: ")
    assert err.endswith(
        "(log: runs/tiny/logs/config=b.yaml.log)\n"
        "randbp sweep: 1 of 2 runs did not finish; what the others gave is complete\n"
    )
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
def tell(status, **metrics):
    summary = {"format": 1, "status": status, "run": {}, "cost": {"held_bytes": 1}, "metrics": metrics}
    (folder / "summary.json").write_text(json.dumps(summary))
tell("running")
Path(f"began-{given['what']}").write_text(str(os.getpid()))
if given["what"] == "kill": os.kill(os.getpid(), signal.SIGKILL)
if given["what"] == "silent": sys.exit(3)
if given["what"] == "speak": print("noise"); sys.exit("the last word")
if given["what"] == "lazy": time.sleep(60)
other = {"meet": "meet2", "meet2": "meet"}.get(given["what"])
deadline = time.monotonic() + 30
while other and not Path(f"began-{other}").exists():  # finishes only beside another that does the same
    if time.monotonic() > deadline: sys.exit("alone")
    time.sleep(0.01)
if "x" in given:
    losses = [(float(given["x"]) - 0.3) ** 2 / epoch for epoch in (1, 2, 3)]
    for epoch in (1, 2, 3):
        lines = ["loss,step", *(f"{loss},{step}" for step, loss in enumerate(losses[:epoch]))]
        (folder / "metrics.csv").write_text("\\n".join(lines) + "\\n")
    if given["what"] == "stays" and losses[0] > 0.2: time.sleep(60)
    tell("finished", loss=losses[-1])
else:
    tell("finished")
"""


def script_sweep(folder: Path, *what: str, **others: Any) -> Path:
    """A sweep over quick processes that end in one way or another."""
    (folder / "script.py").write_text(SCRIPT)
    command = ["${env}", "${interpreter}", "${program}", "${args}"]
    parameters = {"what": {"values": list(what)}, "fixed": {"value": 1}} | others.pop("parameters", {})
    content = {"program": "script.py", "command": command, "method": "grid", "parameters": parameters, **others}
    return write(folder / "quick.yaml", content)


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
    out, err = capsys.readouterr()
    assert "3 of 4 runs did not finish" in err and "what=speak: the last word (log: " in err
    numbers = [line.split()[0] for line in out.splitlines() if line.startswith("[")]
    assert numbers == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]


def test_jobs_run_side_by_side(here: Path) -> None:
    assert main(["sweep", str(script_sweep(here, "meet", "meet2")), "--jobs=2", "--name=other"]) == 0
    assert status(here / "runs" / "other" / "what=meet") == "finished"


def ended(folder: Path, way: str) -> tuple[int, str]:
    """End a sweep while its second run takes long. Returns the exit code, and what was printed."""
    (folder / "s.yaml").write_bytes(script_sweep(folder, "fine", "lazy", "kill").read_bytes())
    code, _, _, text = kill_sweep.run(folder, "quick", way=way, until=lambda _: (folder / "began-lazy").exists())
    assert all_end([number_in(folder / "began-lazy")])
    return code, text


@pytest.mark.parametrize(
    ("way", "code", "word"), [("interrupt", 130, "interrupted"), ("term", 143, "ended by SIGTERM")]
)
def test_stopping_keeps_what_is_there_and_says_how_to_go_on(here: Path, way: str, code: int, word: str) -> None:
    found, text = ended(here, way)
    runs = here / "runs" / "quick"
    assert (found, status(runs / "what=fine"), status(runs / "what=lazy")) == (code, "finished", "failed")
    assert not (runs / "what=kill").exists()
    assert "what=kill: not started" in text
    assert text.splitlines()[-1] == f"randbp sweep: {word}; to go on: randbp sweep s.yaml --name=quick --resume"
    assert (runs / "report.html").exists()


def test_runs_end_with_a_sweep_that_is_killed_and_another_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(here, "alone")[0] == -signal.SIGKILL
    (here / "script.py").write_text(SCRIPT.replace("time.sleep(60)", "pass"))
    assert main(["sweep", "s.yaml", "--name=quick", "--resume"]) == 1
    out = capsys.readouterr().out
    assert "what=lazy  finished" in out and "what=kill  FAILED" in out and "what=fine  " not in out


def test_two_sweeps_do_not_share_a_folder(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    sweep = script_sweep(here, "fine")
    (here / "runs" / "quick").mkdir(parents=True)
    with FileLock(here / "runs" / "quick" / ".lock"):
        assert main(["sweep", str(sweep), "--resume"]) == 2
    assert "another sweep is working there" in capsys.readouterr().err


def test_a_run_that_somebody_trains_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = script_sweep(here, "silent", "fine")
    assert main(["sweep", str(sweep)]) == 1
    capsys.readouterr()
    with owned(here / "runs/quick/what=silent"):
        assert main(["sweep", str(here / "runs/quick/sweep.yaml"), "--name=quick", "--resume"]) == 2
    assert "runs/quick/what=silent: another process is training there" in capsys.readouterr().err
    assert status(here / "runs/quick/what=silent") == "failed"


X = {"parameters": {"x": {"min": 0.0, "max": 1.0}}}


@pytest.mark.parametrize(("method", "count"), [("random", 4), ("bayes", 12)])  # the first 10 of bayes are random
def test_a_search_that_is_taken_up_again_goes_on_as_it_would_have(
    here: Path, method: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = str(script_sweep(here, "fine", method=method, metric={"name": "loss"}, **X))
    assert main(["sweep", sweep, "--name=whole", f"--count={count}"]) == 0
    assert re.search(r"\[1/\d+\] x=\S+  finished in \d+ s, loss \d", capsys.readouterr().out)
    assert main(["sweep", sweep, "--name=parts", f"--count={count - 2}"]) == 0
    last = min((here / "runs" / "parts").glob("x=*"), key=lambda path: path.stat().st_mtime)
    (last / "summary.json").write_text("{}")  # as if it had been ended
    capsys.readouterr()
    assert main(["sweep", sweep, "--name=parts", f"--count={count}", "--resume"]) == 0
    assert f"{count - 3} of {count} runs are finished already" in capsys.readouterr().out
    whole, parts = ((here / "runs" / name / "trials.json").read_text() for name in ("whole", "parts"))
    assert whole == parts and len(set(map(str, json.loads(whole)["draws"]))) == count
    assert len(list((here / "runs" / "parts").glob("x=*"))) == count
    for parameters in ({"y": X["parameters"]["x"]}, {}):
        script_sweep(here, "fine", method=method, metric={"name": "loss"}, parameters=parameters)
        assert main(["sweep", sweep, "--name=parts", f"--count={count}", "--resume"]) == 2
        assert "parts/trials.json: not of this sweep file's parameters" in capsys.readouterr().err


def test_a_run_that_falls_behind_is_stopped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"type": "hyperband", "min_iter": 3, "eta": 2}
    parameters = {"parameters": {"x": {"values": [0.1, 0.2, 0.9, 0.3]}}}
    sweep = str(script_sweep(here, "stays", metric={"name": "loss"}, early_terminate=rule, **parameters))
    assert main(["sweep", sweep]) == 0
    runs = here / "runs" / "quick"
    assert {path.name: status(path) for path in runs.glob("x=*")} == {
        **{"x=0.1": "finished", "x=0.2": "finished", "x=0.3": "finished"},
        "x=0.9": "stopped",
    }
    out = capsys.readouterr().out
    assert "x=0.9  stopped early: loss is not among the best 1/2 at 3" in out
    assert main(["sweep", sweep, "--resume"]) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().out


def test_no_run_is_started_once_the_target_is_reached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {"parameters": {"x": {"values": [0.9, 0.4, 0.1]}}}
    sweep = str(script_sweep(here, "fine", metric={"name": "loss", "target": 0.01}, **parameters))
    assert main(["sweep", sweep]) == 0
    assert {path.name for path in (here / "runs" / "quick").glob("x=*")} == {"x=0.9", "x=0.4"}
    assert "the metric's target is reached: 1 of 3 runs were not needed" in capsys.readouterr().out


def test_arguments_in_a_file(here: Path) -> None:
    (here / "script.py").write_text(
        "import json, pathlib, sys\n"
        "given = json.load(open(sys.argv[1])); place = dict(word[2:].split('=', 1) for word in sys.argv[2:])\n"
        "folder = pathlib.Path(place['trainer.default_root_dir'], place['name'], place['version'])\n"
        "folder.mkdir(parents=True)\n"
        "(folder / 'summary.json').write_text(json.dumps({'status': 'finished', 'given': given}))\n"
    )
    command = ["${interpreter}", "script.py", "${args_json_file}"]
    nested = {"b": {"parameters": {"c": {"values": [1, 2]}}}}
    sweep = write(here / "s.yaml", {"command": command, "method": "grid", "parameters": nested})
    assert main(["sweep", str(sweep)]) == 0
    for c in (1, 2):
        assert json.loads((here / f"runs/s/c={c}/summary.json").read_text())["given"] == {"b": {"c": c}}


def test_nothing_is_left_of_a_sweep_that_cannot_be_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = script_sweep(here, "fine")
    (here / "script.py").unlink()
    assert main(["sweep", str(sweep)]) == 2
    error = capsys.readouterr().err
    assert error == f"randbp sweep: {sweep}: program='script.py': no such file, expected a script\n"
    assert not (here / "runs").exists()
