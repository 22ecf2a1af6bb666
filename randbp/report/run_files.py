"""The files beside a run's summary: configuration and loss curve."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import pandas
import yaml

from .damaged import Damaged, reading
from .printable import printable

CONFIG, METRICS = "config.yaml", "metrics.csv"
LOSSES = ("train/loss", "train/loss_step", "train_loss", "train_loss_step", "train/loss_epoch", "loss")
MOST_ENTRIES = 10_000
"""Most entries of a configuration; one whose aliases multiply to more was not written by a run."""

LossCurve = pandas.Series
"""The training loss by step."""

NO_LOSSES = pandas.Series(dtype=float)


def read_config(path: Path) -> dict[str, str]:
    """Read a configuration, with nested keys joined by dots; empty if there is none."""
    content = parse_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise Damaged(path, f"a {type(content).__name__}, expected a mapping")
    with reading(path, "YAML"):
        entries = dict(islice(flat_config(content), MOST_ENTRIES + 1))
    if len(entries) > MOST_ENTRIES:
        raise Damaged(path, f"more than {MOST_ENTRIES:,} entries")
    return entries


def parse_yaml(path: Path) -> Any:
    """Read a YAML file without executing Python tags; ``None`` if there is no file."""
    with suppress(FileNotFoundError), reading(path, "YAML"):
        return yaml.safe_load(path.read_bytes())
    return None


def read_text(path: Path) -> str:
    """Read a text; empty if there is no file."""
    with suppress(FileNotFoundError), reading(path, "UTF-8"):
        return path.read_text(encoding="utf-8")
    return ""


def read_losses(path: Path) -> LossCurve:
    """Read training losses by step from the metrics of a run; empty if there are none."""
    table = pandas.DataFrame()
    with reading(path, "CSV"), suppress(FileNotFoundError, pandas.errors.EmptyDataError):
        table = pandas.read_csv(path, low_memory=False)
    return losses_of(path, table)


def losses_of(path: Path, table: pandas.DataFrame) -> LossCurve:
    """Training losses by step in the table of metrics that a file has; empty if there are none."""
    columns = [str(column) for column in table]
    names = [name for name in LOSSES if name in columns]
    names += [name for name in columns if "train" in name and "loss" in name]
    if not names or "step" not in columns:
        return NO_LOSSES
    rows = table[["step", names[0]]].dropna()
    steps, losses = [_numbers(path, rows[column], most) for column, most in (("step", 2.0**53), (names[0], inf))]
    curve = pandas.Series(losses, [int(step) for step in steps])
    return curve[~curve.index.duplicated(keep="last")]


def _numbers(path: Path, column: "pandas.Series[Any]", most: float) -> list[float]:
    numbers = pandas.to_numeric(column, errors="coerce").to_list()
    for line, given, number in zip(column.index, column, numbers, strict=True):
        if not abs(number) <= most:
            raise Damaged(path, printable(f"line {line + 2}: {column.name}={given!r}, expected a number"))
    return numbers


def flat_config(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Entries of a configuration as text, with nested keys joined by dots."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            name = printable(str(key))
            yield from flat_config(item, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and value:
        yield from flat_config(dict(enumerate(value)), prefix)
    else:
        yield prefix, printable(str(value))
