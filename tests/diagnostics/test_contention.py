import os
import subprocess
import sys
from pathlib import Path

import pytest

from randbp.diagnostics import ProcessorWait, contention


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's scheduler statistics")
def test_two_processes_on_one_processor_wait_for_each_other() -> None:
    code = (
        "import os, runpy, sys, time\n"
        "ProcessorWait = runpy.run_path(sys.argv[2])['ProcessorWait']\n"  # by itself, without importing PyTorch
        "os.sched_setaffinity(0, {int(sys.argv[1])}); print('ready', flush=True); sys.stdin.readline()\n"
        "wait, end = ProcessorWait(), time.perf_counter() + 1\n"
        "while time.perf_counter() < end: pass\n"
        "print(wait.threads)"
    )
    one = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-c", code, one, contention.__file__]
    both = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    waits = [float(process.communicate(timeout=60)[0]) for process in both]
    # Each gets half the processor at best while the other is there, and other processes can only take more of it.
    assert all(0.25 < wait < 1.0 for wait in waits)


def test_unknown_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(contention, "_TASKS", tmp_path / "missing")
    assert ProcessorWait().threads is None
