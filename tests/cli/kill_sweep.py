"""Kill sweeps at many moments, go on, and compare their runs with those of one that nobody disturbed.

    python -m tests.cli.kill_sweep [10]

So many times each the sweep alone is killed, its whole process group, and it is sent SIGTERM. Half of the moments are
times; half are operations on files of the sweep itself, before which it ends itself.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.cli.forked import processes, run_watched
from tests.cli.kill_fit import OPTIONS, difference

WAYS = ("alone", "group", "term")
SEEDS = (0, 1)
EPOCHS = 12


def sweep(options: list[str], root: Path, log: Path, way: str, last: int | None, counted: Any) -> None:
    """The process: a sweep in a group of its own, which ends itself before one of its operations on files."""
    os.setsid()
    # Where the runs find the model, and on as many threads as the run that nobody disturbs: sums depend on that.
    os.environ.update(PYTHONPATH=str(Path(__file__).parents[2]), OMP_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    os.chdir(root)
    run_watched(["sweep", "s.yaml", *options], root / "runs", log, last, partial(end, os.getpid(), way), counted)


def end(pid: int, way: str) -> None:
    """End a sweep."""
    if way in ("group", "interrupt"):
        os.killpg(pid, signal.SIGKILL if way == "group" else signal.SIGINT)  # as a terminal on Ctrl-C
    else:
        os.kill(pid, signal.SIGTERM if way == "term" else signal.SIGKILL)


def run(
    root: Path,
    name: str,
    *options: str,
    way: str = "alone",
    last: int | None = None,
    until: Callable[[float], bool] = lambda seconds: seconds > 600,
) -> Any:
    """Sweep to the end, or up to a moment: before an operation, or when a function of the seconds says so.

    Returns:
        The exit code, the seconds, the operations, and what was printed.
    """
    log, counted = root / f"{name}.log", processes.Value("i", 0)
    words = [f"--name={name}", *options]
    process = processes.Process(target=sweep, args=(words, root, log, way, last, counted))
    began = time.perf_counter()
    process.start()
    while process.exitcode is None and not until(time.perf_counter() - began):
        process.join(0.05)
    if process.exitcode is None and process.pid is not None:
        end(process.pid, way)
        process.join()
    return process.exitcode, time.perf_counter() - began, counted.value, log.read_text() if log.exists() else ""


def write_sweep(root: Path, seeds: tuple[int, ...] = SEEDS, epochs: int = EPOCHS) -> None:
    """Make the sweep file."""
    command = ["${env}", "randbp", "fit", *(word for word in OPTIONS if not word.startswith("--name")), "${args}"]
    command += [f"--trainer.max_epochs={epochs}"]
    parameters = {"seed_everything": {"values": list(seeds)}}
    (root / "s.yaml").write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))


def main(count: int) -> int:
    """Kill so many sweeps in each way; returns how many were not the undisturbed one in the end."""
    draw, wrong = random.Random(0), 0
    with TemporaryDirectory() as place:
        root = Path(place)
        write_sweep(root)
        run(root, "first", "--jobs=2")  # which starts the server of processes
        code, seconds, operations, text = run(root, "whole", "--jobs=2")
        assert code == 0, text
        print(f"undisturbed: {seconds:.1f} s, {operations} operations on files by the sweep itself")
        for number in range(count * len(WAYS)):
            way, name = WAYS[number % len(WAYS)], str(number)
            second, last = draw.uniform(0, seconds), draw.randint(1, operations)
            if number // len(WAYS) % 2:
                code, *_ = run(root, name, "--jobs=2", way=way, last=last)
            else:
                code, *_ = run(root, name, "--jobs=2", way=way, until=lambda now, second=second: now > second)
            code_after, _, _, text = run(root, name, "--jobs=2", "--resume")
            pairs = ((root / "runs" / it / f"seed_everything={seed}" for it in (name, "whole")) for seed in SEEDS)
            fault = text if code_after else "; ".join(filter(None, (difference(*pair) for pair in pairs)))
            wrong += bool(fault)
            print(
                f"{number}: {way}, exit {code}, then {f'WRONG: {fault}' if fault else 'as if undisturbed'}", flush=True
            )
    print(f"{count * len(WAYS) - wrong} of {count * len(WAYS)} as if undisturbed")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)))
