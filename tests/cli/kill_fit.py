"""Kill trainings at many moments, go on, and compare with one that nobody disturbed.

    python -m tests.cli.kill_fit [20]

Half of the moments are times, from the start of the process to its end; half are operations on files, among them those
that write a checkpoint: there the process kills itself before the operation that was drawn.
"""

import csv
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.cli.forked import processes, run_watched

OPTIONS = [
    "--model=tests.cli.killed.Net",
    "--data=tests.cli.killed.Data",
    "--tensor_dropout.weight_vjp=Spatial",
    "--tensor_dropout.weight_vjp.keep=0.5",
    "--trainer.max_epochs=4",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--wandb=disabled",
    "--name=g",
]


def fit(options: list[str], folder: Path, log: Path, last: int | None, end: int, counted: Any) -> None:
    """The process: a command that counts its operations on files below a folder, and ends before the last one."""
    os.chdir(folder.parents[2])
    run_watched(["fit", *options], folder, log, last, partial(os.kill, os.getpid(), end), counted)


def run(
    root: Path,
    version: str,
    *options: str,
    last: int | None = None,
    end: int = signal.SIGKILL,
    seconds: float | None = None,
) -> Any:
    """Run to the end, or up to a moment. Returns the exit code, the seconds, the operations, and what was printed."""
    folder, log = root / "runs/g" / version, root / f"{version}.log"
    counted = processes.Value("i", 0)
    words = [*OPTIONS, f"--version={version}", *options]
    process = processes.Process(target=fit, args=(words, folder, log, last, end, counted))
    began = time.perf_counter()
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return process.exitcode, time.perf_counter() - began, counted.value, text


def result(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any], dict[str, torch.Tensor]]:
    """What must not depend on when a process has ended: the metrics, the summary, the model; not what measures time."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("cost/")} for row in csv.DictReader(file)]
    summary = json.loads((folder / "summary.json").read_text())
    kept = {name: summary[name] for name in ("status", "error", "run", "estimators", "progress", "metrics")}
    kept["steps_timed"] = summary["cost"]["steps_timed"]
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return rows, kept, state["state_dict"]


def difference(folder: Path, undisturbed: Path) -> str:
    """In what a run is not the undisturbed one; nothing if it is."""
    (rows, summary, weights), (true_rows, true_summary, true_weights) = result(folder), result(undisturbed)
    for number, (row, true) in enumerate(zip(rows, true_rows, strict=False)):
        if row != true:
            return f"row {number} of the metrics: {row} instead of {true}"
    if len(rows) != len(true_rows):
        return f"{len(rows)} rows of metrics instead of {len(true_rows)}"
    for key, value in true_summary.items():
        if summary[key] != value:
            return f"{key} in the summary: {summary[key]} instead of {value}"
    wrong = [name for name, value in true_weights.items() if not torch.equal(weights[name], value)]
    return f"weights {wrong}" if wrong else ""


def main(count: int) -> int:
    """Kill so many trainings; returns how many were not the undisturbed one in the end."""
    draw = random.Random(0)
    wrong = 0
    with TemporaryDirectory() as place:
        root = Path(place)
        run(root, "first")  # which starts the server of processes
        code, seconds, operations, text = run(root, "whole")
        assert code == 0, text
        print(f"undisturbed: {seconds:.1f} s, {operations} operations on files")
        for number in range(count):
            version = str(number)
            moment = {"last": draw.randint(1, operations)} if number % 2 else {"seconds": draw.uniform(0, seconds)}
            code, *_ = run(root, version, **moment)
            at = (root / "runs/g" / version / "checkpoints/last.ckpt").exists()
            again = {"last": draw.randint(1, operations)} if draw.random() < 0.3 else {}
            codes = [code, *([run(root, version, "--resume", **again)[0]] if again else [])]
            code, _, _, text = run(root, version, "--resume")
            amiss = difference(root / "runs/g" / version, root / "runs/g/whole") if code == 0 else text
            wrong += bool(amiss)
            verdict = f"WRONG: {amiss}" if amiss else "as if undisturbed"
            print(f"{number}: {moment} exit {codes}, {'a' if at else 'no'} checkpoint, then {verdict}", flush=True)
    print(f"{count - wrong} of {count} as if undisturbed")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)))
