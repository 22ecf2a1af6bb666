"""Interleaved timing: contenders run in turn, so that the machine's drift meets all of them alike.

On a GPU each contender has two times: that of calls one behind the other, the host's share included (what a small
layer costs in a loop), and that of the device alone, which is what remains where the host runs ahead or a graph is
replayed.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from randbp.diagnostics import describe_environment
from randbp.diagnostics import timing as timings
from randbp.diagnostics.timing import seconds_per_call
from randbp.text.text_table import text_table

RUNS = Path("runs/bench")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class _Clock:
    now: Callable[[], float] = time.perf_counter


def use_clock(name: str) -> None:
    """Time by the clock on the wall, or by the processor time of this process, which other work hardly disturbs."""
    _Clock.now = CLOCKS[name]


BALLAST = 2**27  # elements that a GPU is made to pass over while the host queues what is timed
FILLING = 4e-4  # seconds that takes, at least


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender: median over rounds, and the spread between quartiles over the
    median; ``device`` is the GPU's own share, where one is timed; ``readings`` has each round's."""

    seconds: float
    noise: float
    rounds: int
    device: float | None = None
    readings: tuple[float, ...] = ()


def interleave(
    contenders: dict[str, Callable[[], Any]], budget: float = 3.0, rounds: tuple[int, int] = (3, 30)
) -> dict[str, Timing]:
    """Time contenders in turn, as :func:`randbp.diagnostics.timing.interleave` does, by the chosen clock.

    Args:
        contenders: Name to function.
        budget: Seconds for all rounds together, kept to unless fewer than the least number of rounds would fit.
        rounds: Least and most rounds.
    """
    device, clock = (torch.device("cuda"), DeviceClock()) if on_gpu() else (torch.device("cpu"), None)
    shares: dict[Callable[[], Any], list[float]] = {run: [] for run in contenders.values()}

    def read(run: Callable[[], Any], times: int) -> float:
        if clock is None:
            return seconds_per_call(run, times, device, _Clock.now)
        torch.cuda.synchronize()
        seconds = seconds_per_call(run, times, device, _Clock.now)
        shares[run].append(clock.seconds(run, seconds))
        return seconds

    def of(run: Callable[[], Any], readings: list[float]) -> Timing:
        share = median(shares[run][1:]) if clock else None  # but the first, which chose the number of calls
        return Timing(median(readings), _noise(readings), len(readings), share, tuple(readings))

    found = timings.interleave(contenders, read, rounds, budget)
    return {name: of(contenders[name], readings) for name, readings in found.items()}


def on_gpu() -> bool:
    """Whether anything of this process has touched a GPU, so that it has to be waited for."""
    return torch.cuda.is_initialized()


class DeviceClock:
    """Seconds that a GPU works on a call whose kernels all wait in its queue."""

    def __init__(self) -> None:
        self.ballast = torch.zeros(BALLAST, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, run: Callable[[], Any], host: float) -> float:
        """Seconds on the device; meanwhile the host needs up to ``host`` to queue the kernels."""
        for _ in range(1 + int(1.5 * host / FILLING)):
            self.ballast.add_(1)
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3


def _noise(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4)
    return (high - low) / median(values)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that start with one of a pattern's comma-separated parts; all of them if it has none.

    Example:
        >>> matching("vgg, all", ["all-cnn-c", "resnet-18", "vgg-19"])
        ['all-cnn-c', 'vgg-19']
    """
    prefixes = tuple(part.strip() for part in pattern.split(",") if part.strip())
    return [name for name in names if not prefixes or name.startswith(prefixes)]


def over(timings: dict[str, Timing], first: str) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """What timings are in a file, and in a table: median, its ratio to that of one of them, and noise."""
    rows = [
        {
            "contender": name,
            "seconds": timing.seconds,
            "noise": timing.noise,
            "rounds": timing.rounds,
            "ratio": timing.seconds / timings[first].seconds,
        }
        for name, timing in timings.items()
    ]
    table = [
        [row["contender"], f"{row['seconds']:.3f} s", f"{row['ratio']:.2f}", f"{row['noise']:.0%}"] for row in rows
    ]
    return rows, table


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean, the mean for ratios."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return describe_environment(torch.device("cuda" if on_gpu() else "cpu")) | {
        "clock": next(name for name, clock in CLOCKS.items() if clock is _Clock.now),
        "float32_products": torch.get_float32_matmul_precision(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def save(name: str, rows: list[dict[str, Any]], summary: dict[str, Any], folder: Path = RUNS) -> Path:
    """Write a benchmark's rows and summary as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "summary": summary, "rows": rows}, indent=2))
    return path


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    print(f"{title}\n\n{text_table(columns, [row + [''] * (len(columns) - len(row)) for row in rows])}\n")
