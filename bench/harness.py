"""Interleaved timing: contenders run in turn, so that the machine's drift meets all of them alike."""

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

import torch

RUNS = Path("runs/bench")


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender: median over rounds, and the spread between quartiles over the
    median."""

    seconds: float
    noise: float
    rounds: int


def interleave(
    contenders: dict[str, Callable[[], Any]], budget: float = 3.0, rounds: tuple[int, int] = (3, 30)
) -> dict[str, Timing]:
    """Time contenders in turn, after one warm-up call each, in a new random order every round: what runs before a
    contender decides what it finds in the cache.

    Fast contenders are called several times per round so that a reading is no shorter than about a
    millisecond.

    Args:
        contenders: Name to function.
        budget: Seconds for all rounds together, kept to unless fewer than the least number of rounds would
            fit.
        rounds: Least and most rounds.
    """
    repeats, total = {}, 0.0
    for name, run in contenders.items():
        run()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        repeats[name] = max(1, min(1000, int(2e-3 / max(seconds, 1e-7))))
        total += seconds * repeats[name]
    count = max(rounds[0], min(rounds[1], int(budget / max(total, 1e-9))))
    readings: dict[str, list[float]] = {name: [] for name in contenders}
    names, order = list(contenders), Random(0)
    for _ in range(count):
        order.shuffle(names)
        for name in names:
            run, times = contenders[name], repeats[name]
            start = time.perf_counter()
            for _ in range(times):
                run()
            readings[name].append((time.perf_counter() - start) / times)
    return {name: Timing(median(values), _noise(values), len(values)) for name, values in readings.items()}


def _noise(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4)
    return (high - low) / median(values)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean, the mean for ratios."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def save(name: str, rows: list[dict[str, Any]], summary: dict[str, Any], folder: Path = RUNS) -> Path:
    """Write a benchmark's rows and summary as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "summary": summary, "rows": rows}, indent=2))
    return path


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, with rich if it is installed."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for row in [columns, *rows]:
            print("  ".join(row))
        return
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if console.width < 120 and not console.is_terminal:
        console = Console(width=160)
    console.print(table)
