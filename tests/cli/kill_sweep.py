"""Kill sweeps at many moments, go on, and compare their runs with those of one that nobody disturbed.

    python -m tests.cli.kill_sweep [10]

So many times each the sweep alone is killed, its whole process group, and it is sent SIGTERM. A third of the moments
are times; a third are operations on files of the sweep itself, before which it ends itself; at the others one of the
runs has completed so many epochs.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from tests.cli.kill_fit import OPTIONS, difference, processes

WAYS = ("alone", "group", "term")
SEEDS = (0, 1)
EPOCHS = 12


def sweep(options: list[str], root: Path, log: Path, way: str, last: int | None, counted: Any) -> None:
    """The process: a sweep in a group of its own, which ends itself before one of its operations on files."""
    from randbp.cli.main import main

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if event in ("open", "os.rename", "os.mkdir", "os.remove") else None
        if isinstance(path, str | bytes | Path) and os.path.abspath(os.fsdecode(path)).startswith(str(root / "runs")):
            counted.value += 1
            if counted.value == last:
                end(os.getpid(), way)

    os.setsid()
    # Where the runs find the model, and on as many threads as the run that nobody disturbs: sums depend on that.
    os.environ.update(PYTHONPATH=str(Path(__file__).parents[2]), OMP_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    os.chdir(root)
    with log.open("ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.addaudithook(watch)
    sys.exit(main(["sweep", "s.yaml", *options]))


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


def epochs(root: Path, name: str) -> int:
    """How many epochs the first run has completed."""
    try:
        summary = json.loads((root / "runs" / name / f"seed_everything={SEEDS[0]}" / "summary.json").read_text())
    except FileNotFoundError:
        return 0
    return summary.get("progress", {}).get("epochs", 0)


def amiss(root: Path, name: str, seeds: tuple[int, ...] = SEEDS) -> str:
    """In what the runs are not those of the undisturbed sweep; nothing if they are."""
    versions = [f"seed_everything={seed}" if len(seeds) > 1 else "run" for seed in seeds]
    found = (difference(root / "runs" / name / it, root / "runs" / "whole" / it) for it in versions)
    return "; ".join(filter(None, found))


def main(count: int) -> int:
    """Kill so many sweeps in each way; returns how many were not the undisturbed one in the end."""
    draw = random.Random(0)
    wrong = 0
    with TemporaryDirectory() as place:
        root = Path(place)
        write_sweep(root)
        run(root, "first", "--jobs=2")  # which starts the server of processes
        code, seconds, operations, text = run(root, "whole", "--jobs=2")
        assert code == 0, text
        print(f"undisturbed: {seconds:.1f} s, {operations} operations on files by the sweep itself")
        for number in range(count * len(WAYS)):
            way, name = WAYS[number % len(WAYS)], str(number)
            kind = ("epoch", "time", "operation")[number // len(WAYS) % 3]
            epoch, second = draw.randint(1, EPOCHS - 1), draw.uniform(0, seconds)
            last = draw.randint(1, operations) if kind == "operation" else None
            ends = {
                "epoch": lambda now, name=name, epoch=epoch: epochs(root, name) >= epoch or now > 600,
                "time": lambda now, second=second: now > second,
                "operation": lambda now: now > 600,
            }
            code, *_ = run(root, name, "--jobs=2", way=way, last=last, until=ends[kind])
            there = sorted(path.parent.parent.name for path in root.glob(f"runs/{name}/*/checkpoints/last.ckpt"))
            code_after, _, _, text = run(root, name, "--jobs=2", "--resume")
            fault = amiss(root, name) if code_after == 0 else text
            wrong += bool(fault)
            verdict = f"WRONG: {fault}" if fault else "as if undisturbed"
            moment = {
                "epoch": f"at epoch {epoch}",
                "time": f"after {second:.1f} s",
                "operation": f"at operation {last}",
            }
            print(f"{number}: {way} {moment[kind]}, exit {code}, checkpoints of {there}, then {verdict}", flush=True)
    print(f"{count * len(WAYS) - wrong} of {count * len(WAYS)} as if undisturbed")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)))
