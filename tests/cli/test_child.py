"""Processes end with the one that started them, whatever ends it, and so do those that they have started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from randbp.cli import child

# Starts the module by its path, without the package around it and PyTorch; the command is a shell with something behind
# it, as `bash -c "randbp fit …"` or a data loader's worker would be.
PARENT = f"""
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("child", {child.__file__!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
reading, writing = os.pipe()
with open("log", "wb") as log:
    process = child.start(["sh", "-c", sys.argv[1]], reading, os.environ, log)
print(process.pid, flush=True)
while (code := child.ended(process)) is None:
    time.sleep(0.02)
print(code, flush=True)
"""
SHELL = "echo $$ > shell; sleep 1000 & echo $! > behind; wait; echo over"


def started(folder: Path, script: str = SHELL) -> tuple["subprocess.Popen[str]", int]:
    """The parent, and the leader of the group that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, script], cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def number_in(path: Path) -> int:
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not, as far as the system tells."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # ended in between, or a system without /proc
        return not Path("/proc/self").exists()


def all_end(pids: list[int]) -> bool:
    deadline = time.monotonic() + 300
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("whom", "number"),
    [
        ("parent", signal.SIGKILL),
        ("parent", signal.SIGTERM),
        ("parent", signal.SIGHUP),
        ("its group", signal.SIGKILL),
        ("its group", signal.SIGINT),
        ("the leader", signal.SIGKILL),
    ],
)
def test_all_end_with_the_parent(tmp_path: Path, whom: str, number: signal.Signals) -> None:
    process, leader = started(tmp_path)
    others = [leader, number_in(tmp_path / "shell"), number_in(tmp_path / "behind")]
    assert all(map(is_alive, others)) and os.getpgid(others[2]) == leader
    if whom == "its group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "parent" else leader, number)
    assert all_end(others)
    out, _ = process.communicate(timeout=300)
    assert out == (f"{-number}\n" if whom == "the leader" else "")
    assert (tmp_path / "log").read_text() == ""  # the shell did not get to its end


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for the parent's end")
def test_the_command_ends_if_parent_and_leader_are_killed_at_once(tmp_path: Path) -> None:
    process, leader = started(tmp_path)
    shell, behind = number_in(tmp_path / "shell"), number_in(tmp_path / "behind")
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot do anything about the leader's end
    os.kill(leader, signal.SIGKILL)
    assert all_end([leader, shell])
    process.kill()
    process.communicate(timeout=300)
    os.kill(behind, signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -KILL $$", -9)]
)
def test_it_ends_as_its_command_does(tmp_path: Path, script: str, code: int) -> None:
    process, _ = started(tmp_path, f"echo said; {script}")
    out, _ = process.communicate(timeout=300)
    assert (out, (tmp_path / "log").read_text()) == (f"{code}\n", "said\n")


def test_a_command_that_failed_leaves_nothing_running(tmp_path: Path) -> None:
    process, leader = started(tmp_path, "sleep 1000 & echo $! > behind; exit 3")
    out, _ = process.communicate(timeout=300)
    assert out == "3\n" and all_end([leader, number_in(tmp_path / "behind")])


def test_stopping_is_patient_and_then_is_not(tmp_path: Path) -> None:
    end, lifeline = os.pipe()
    deaf = "trap '' TERM; echo > ready; sleep 1000"
    willing = "trap 'echo bye; exit 5' TERM; echo > ready; sleep 1000 & wait"
    processes = []
    for name, script in (("deaf", deaf), ("willing", willing)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "log").open("wb") as log:
            command = ["sh", "-c", f"cd {tmp_path / name}; {script}"]
            processes.append(child.start(command, end, os.environ, log))
    for name in ("deaf", "willing"):
        while not (tmp_path / name / "ready").exists():
            time.sleep(0.01)
    child.stop(processes, signal.SIGTERM, patience=0.5)
    assert [process.returncode for process in processes] == [-9, 5]
    assert (tmp_path / "willing" / "log").read_text() == "bye\n"
    os.close(end)
    os.close(lifeline)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    end, lifeline = os.pipe()
    with (tmp_path / "log").open("wb") as log:
        process = child.start(["no/such/program"], end, os.environ, log)
    assert process.wait() == 1
    assert (tmp_path / "log").read_text() == "no/such/program: No such file or directory\n"
    os.close(end)
    os.close(lifeline)
