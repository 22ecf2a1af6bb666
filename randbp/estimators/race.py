"""Which of several ways to compute the same thing is the fastest: timed in turn, the clearly slower ones briefly."""

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from .aside import aside

ROUNDS = (2, 45)  # least and most readings of each
SECONDS = (0.1, 0.5)  # for all readings: enough if least and middle ones agree, and at most (but ROUNDS[0] are made)
BEHIND = 1.5  # times another's least reading: who takes longer, twice, is read no more
GAIN = 0.95  # of the time of what is there already, at most which is worth a change


class Ratio(NamedTuple):
    """A contender's time over the first one's.

    Attributes:
        least: Of the least readings, for other work on the machine only adds.
        middle: Of the medians, for the time of some kernels differs from call to call.
    """

    least: float
    middle: float


def race(contenders: Sequence[Callable[[], object]], device: torch.device) -> tuple[float, list[Ratio]]:
    """The first contender's least seconds, and each one's ratio to it.

    All run in turn, forwards and backwards, in a thread of their own.

    Args:
        contenders: What to run; each is called once before it is timed.
        device: Which is waited for.

    Example:
        >>> from time import sleep
        >>> seconds, ratios = race([lambda: sleep(0.02), lambda: sleep(0.001)], torch.device("cpu"))
        >>> seconds >= 0.02, ratios[0], ratios[1].least < GAIN
        (True, Ratio(least=1.0, middle=1.0), True)
    """
    return aside(lambda: _race(contenders, device))


def _race(contenders: Sequence[Callable[[], object]], device: torch.device) -> tuple[float, list[Ratio]]:
    def run(contender: Callable[[], object]) -> float:
        started = perf_counter()
        contender()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return perf_counter() - started

    for contender in contenders:  # plans, tables and the kernels' own choices are made in the first call
        run(contender)
    readings: list[list[float]] = [[] for _ in contenders]
    running, spent = list(range(len(contenders))), 0.0
    for turn in range(ROUNDS[1]):
        for number in running if turn % 2 == 0 else reversed(running):
            readings[number].append(run(contenders[number]))
            spent += readings[number][-1]
        if turn:
            best = min(map(min, readings))
            running = [number for number in running if min(readings[number]) <= BEHIND * best]
        if len(running) == 1 or (turn + 1 >= ROUNDS[0] and spent > SECONDS[0 if _agree(readings) else 1]):
            break
    return min(readings[0]), _ratios(readings)


def _ratios(readings: list[list[float]]) -> list[Ratio]:
    least, middle = [min(times) for times in readings], [median(times) for times in readings]
    return [Ratio(low / least[0], mid / middle[0]) for low, mid in zip(least, middle, strict=True)]


def _agree(readings: list[list[float]]) -> bool:
    """Whether least and middle readings say the same of who gains enough."""
    return all((ratio.least <= GAIN) == (ratio.middle <= GAIN) for ratio in _ratios(readings))
