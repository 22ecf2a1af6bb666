"""Workers of a sweep share its folder alone: each run is made once, and that of a killed worker is taken up again."""

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from randbp.cli import run_folder, sweep_worker
from randbp.cli.errors import UsageError
from randbp.cli.main import main
from randbp.cli.run_folder import owned
from tests.cli import kill_sweep
from tests.cli.forked import processes
from tests.cli.test_child import number_in
from tests.cli.test_sweep import SCRIPT, here, script_sweep, status  # noqa: F401 -- a fixture

# The first run of all lasts until it is killed; each writes down that it has begun, and that it has ended.
SHARED = SCRIPT.replace(
    'tell("running")',
    """tell("running")
def note(what):
    with open(what, "a") as file: file.write(folder.name + "\\n")
note("began")
try: open("victim", "x").write(str(os.getppid()))
except FileExistsError: time.sleep(0.2)
else: time.sleep(600)
import atexit; atexit.register(note, "ended")
""",
)
SEARCH = {
    **{"method": "bayes", "run_cap": 4, "metric": {"name": "loss"}},
    "parameters": {"x": {"min": 0.0, "max": 1.0}},
}
COUNTED = processes.Value("i", 0)  # operations on files, which nobody asks for here


def worker(folder: Path, name: str, *options: str) -> Any:
    """A started worker, which writes what it prints into a file."""
    (folder / "s.yaml").write_bytes((folder / "quick.yaml").read_bytes())
    words, log = ["--name=quick", "--worker", *options], folder / f"{name}.log"
    process: Any = processes.Process(target=kill_sweep.sweep, args=(words, folder, log, "alone", None, COUNTED))
    process.start()
    return process


def holder(folder: Path) -> int:
    """The worker that has started the run that lasts: its process is the run's grandparent."""
    watching = number_in(folder / "victim")
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(watching)], capture_output=True, check=True).stdout)


def table(folder: Path, name: str) -> str:
    text = (folder / f"{name}.log").read_text()
    return text[text.index("\n\n") :]


def test_each_run_is_made_once_though_a_worker_is_killed(here: Path) -> None:  # noqa: F811
    script_sweep(here, "fine", **SEARCH)
    (here / "script.py").write_text(SHARED)
    workers = {name: worker(here, name) for name in "abc"}
    victim = holder(here)
    deadline = time.monotonic() + 300
    while not (here / "ended").exists():  # the others work meanwhile
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(victim, signal.SIGKILL)
    for process in workers.values():
        process.join()
    (killed,) = [name for name, process in workers.items() if process.pid == victim]
    codes = {name: process.exitcode for name, process in workers.items()}
    left = sorted(codes.keys() - {killed})
    assert codes == {killed: -signal.SIGKILL, **dict.fromkeys(left, 0)}, table(here, left[0])
    began, ended = (Counter((here / what).read_text().split()) for what in ("began", "ended"))
    (again,) = began - ended  # the run that was killed has begun twice
    assert began[again] == 2 and began.total() == 5
    assert len(ended) == 4 and set(ended.values()) == {1}
    assert all(status(here / "runs/quick" / name) == "finished" for name in ended)
    assert table(here, left[0]) == table(here, left[1])
    assert "keep rate" in table(here, left[0])


def test_a_worker_that_is_sent_away_leaves_its_run_to_the_next(
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = str(script_sweep(here, "fine", "silent", "fine2"))
    (here / "script.py").write_text(SHARED)
    first = worker(here, "a")
    os.kill(holder(here), signal.SIGTERM)
    first.join()
    assert (first.exitcode, status(here / "runs/quick/what=fine")) == (143, "interrupted")
    assert (here / "a.log").read_text().endswith("to go on: randbp sweep s.yaml --name=quick --worker\n")
    assert main(["sweep", sweep, "--worker"]) == 1  # another run fails, which is not tried again
    assert main(["sweep", sweep, "--worker"]) == 1
    runs = here / "runs/quick"
    assert [status(runs / f"what={what}") for what in ("fine", "silent", "fine2")] == ["finished", "failed", "finished"]
    assert Counter((here / "began").read_text().split())["what=silent"] == 1
    capsys.readouterr()

    monkeypatch.setattr(sweep_worker, "PATIENCE", 0.1)
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    other = script_sweep(here, "fine", "silent")
    for options, said in (
        (["--worker"], f"{other}: other workers run another file, runs/quick/sweep.yaml"),
        (["--worker", "--resume"], "--worker: takes up open runs by itself, expected it without --resume"),
    ):
        assert main(["sweep", str(other), *options]) == 2
        assert said in capsys.readouterr().err
    with owned(here / "runs/quick"):
        assert main(["sweep", str(here / "runs/quick/sweep.yaml"), "--name=quick", "--worker"]) == 2
    assert "another sweep is working there" in capsys.readouterr().err


def test_processes_that_a_cluster_starts_agree_on_a_folder(
    here: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(run_folder.SHARED, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    first = run_folder.claim(here, "a", "b")
    monkeypatch.delenv(run_folder.SHARED)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert run_folder.claim(here, "a", "b") == first == here / "a/b"
    with pytest.raises(UsageError, match="--version: missing"):
        run_folder.claim(here, "a", None)
    assert main(["sweep", str(script_sweep(here, "fine")), "--worker"]) == 2
    assert "expected one per job, as in a job array" in capsys.readouterr().err
