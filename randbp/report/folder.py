"""The content of a folder of runs, and the files in it that cannot be read."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from .damaged import Damaged, reading
from .printable import printable
from .run import SUMMARY, Run
from .run_files import CONFIG, METRICS, read_config, read_losses
from .summary_file import read_summary
from .target import Target, read_target

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
    """Read all runs below a folder (or the one in it); hidden folders are left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    runs: list[Run] = []
    damaged: list[Damaged] = []
    for path in sorted(folder.rglob(SUMMARY), key=lambda path: natural_key(str(path))):
        inner = path.parent.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        name = folder.resolve().name if inner == Path() else str(inner)
        try:
            summary = read_summary(path)
            if not summary.trained:
                continue
            config = read_config(path.with_name(CONFIG))
        except Damaged as error:
            damaged.append(error)
            continue
        try:
            losses = read_losses(path.with_name(METRICS))
        except Damaged as error:
            damaged.append(Damaged(error.path, f"{error.what}; the run has no loss curve here"))
            losses = pandas.Series(dtype=float)
        runs.append(Run(printable(name), summary, config, losses))
    if not runs and damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise Damaged(folder, f"no run in it that can be read: {damaged[0]}{more}")
    if not runs:
        raise FileNotFoundError(f"{folder}: no {SUMMARY} in it or below; runs write one with CostMonitor")
    found: dict[str, Any] = {}
    for name, read in (("target", read_target), ("preface", _read_preface)):
        try:
            found[name] = read(folder)
        except Damaged as error:
            damaged.append(error)
    return Results(tuple(runs), tuple(damaged), **found)


def _read_preface(folder: Path) -> str:
    path = folder / PREFACE
    with reading(path, "UTF-8"), suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return ""


def natural_key(text: str) -> list[tuple[float, str]]:
    """Sort key that orders numbers in names by value.

    Example:
        >>> sorted(["keep=0.5", "keep=0.25", "v10", "v9"], key=natural_key)
        ['keep=0.25', 'keep=0.5', 'v9', 'v10']
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if index % 2 else (0.0, part) for index, part in enumerate(parts)]
