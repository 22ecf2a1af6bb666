"""The content of a folder of runs, and the files in it that cannot be read."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .damaged import Damaged
from .other_runs import read_csv_runs, read_wandb_run
from .printable import printable
from .run import SUMMARY, Run
from .run_files import CONFIG, METRICS, NO_LOSSES, read_config, read_losses, read_text
from .summary_file import read_summary
from .target import SWEEP, Target, read_target
from .wandb_file import OFFLINE

Content = TypeVar("Content")

PREFACE = "preface.html"
"""HTML in a folder of runs with which the page begins: what a program has found beyond its runs."""


@dataclass(frozen=True)
class Results:
    """The runs below a folder."""

    runs: tuple[Run, ...]  # those that can be read, in the order of their names
    damaged: tuple[Damaged, ...] = ()  # the rest, with what is wrong; only without metrics a run is there all the same
    target: Target | None = None  # the metric of the sweep whose folder it is
    preface: str = ""  # HTML that a program has left in the folder, for the beginning of the page


def load_runs(folder: Path) -> Results:
    """Read all runs below a folder (or the one in it); hidden folders are left out.

    These are folders with a ``summary.json``, and what lies outside of them: offline runs of W&B and CSV files, one of
    which may also be given in the place of a folder.
    """
    if folder.is_file() and folder.suffix == ".csv":
        return Results(tuple(read_csv_runs(folder, "")))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    runs: list[Run] = []
    damaged: list[Damaged] = []

    def found(read: Callable[[Path], Content], path: Path, more: str = "") -> Content | None:
        try:
            return read(path)
        except Damaged as error:
            damaged.append(Damaged(error.path, error.what + more))
            return None

    for path in sorted(folder.rglob(SUMMARY), key=lambda path: natural_key(str(path))):
        inner = path.parent.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        summary = found(read_summary, path)
        if summary is None or not summary.trained or (config := found(read_config, path.with_name(CONFIG))) is None:
            continue
        losses = found(read_losses, path.with_name(METRICS), "; the run has no loss curve here")
        name = folder.resolve().name if inner == Path() else str(inner)
        runs.append(Run(printable(name), summary, config, NO_LOSSES if losses is None else losses))
    others, bad = _others(folder, [path.parent for path in folder.rglob(SUMMARY)])
    runs, damaged = [*runs, *others], [*damaged, *bad]
    if not runs and damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise Damaged(folder, f"no run in it that can be read: {damaged[0]}{more}")
    if not runs:
        raise FileNotFoundError(
            f"{folder}: no {SUMMARY} in it or below, nor CSV files or offline W&B runs; runs write one with CostMonitor"
        )
    target, preface = found(read_target, folder / SWEEP), found(read_text, folder / PREFACE)
    return Results(tuple(runs), tuple(damaged), target, preface or "")


def _others(folder: Path, inside: Sequence[Path]) -> tuple[list[Run], list[Damaged]]:
    """Runs of other programs that lie in none of these folders, and what cannot be read."""
    runs: list[Run] = []
    damaged: list[Damaged] = []
    for path in sorted(
        [*folder.rglob(f"{OFFLINE}/*.wandb"), *folder.rglob("*.csv")], key=lambda it: natural_key(str(it))
    ):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or any(path.is_relative_to(each) for each in inside):
            continue
        try:
            if path.suffix == ".wandb":
                runs.append(read_wandb_run(path, str(place.parent)))
            else:
                runs += read_csv_runs(path, str(place.with_suffix("")))
        except Damaged as error:
            damaged.append(error)
    return runs, damaged


def natural_key(text: str) -> list[tuple[float, str]]:
    """Sort key that orders numbers in names by value.

    Example:
        >>> sorted(["keep=0.5", "keep=0.25", "v10", "v9"], key=natural_key)
        ['keep=0.25', 'keep=0.5', 'v9', 'v10']
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]
