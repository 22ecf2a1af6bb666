"""Which of several ways to compute the same thing is fastest: timed in turn until that is clear."""

from collections.abc import Callable, Sequence
from math import sqrt
from time import perf_counter

import torch

from .._torch.clean_thread import without_modes

GAIN = 0.95  # largest time over the first contender's for which a change is worth it
READINGS = (3, 10)  # least and largest number of readings of each contender while the race is open
SECONDS = 0.1  # an open race ends after this time, first readings left out, once it has its least number [seconds]
STEADY = 1.3  # the least reading is believed if the second least is at most this factor above it
NOISE = 0.12  # relative difference of two times that is clear after two readings


def race(
    contenders: Sequence[Callable[[], object]], device: torch.device, clock: Callable[[], float] = perf_counter
) -> tuple[float, list[float]]:
    """Measure the first contender's seconds, and each contender's ratio to it when it left the race.

    All run in turn, forwards and backwards, in a thread of their own. A contender's time is the mean of the lower half
    of its readings, since other programs and what a first call prepares can only add to it. A contender leaves the race
    when it is clearly no gain over the first one (:data:`GAIN`), or clearly slower than another; the race ends when
    none is left that may gain, or a single one that clearly does. "Clearly" means by a factor ``1 + NOISE / √n`` after
    ``n`` readings, the first not counted. Gains of a tenth under noise of a twentieth are found in 19 of 20 races.

    Example:
        >>> from time import sleep
        >>> seconds, ratios = race([lambda: sleep(0.02), lambda: sleep(0.001)], torch.device("cpu"))
        >>> seconds >= 0.02, ratios[0], ratios[1] < GAIN
        (True, 1.0, True)
    """
    threads = torch.get_num_threads()
    return without_modes(lambda: _race(contenders, device, clock, threads))


def _race(
    contenders: Sequence[Callable[[], object]], device: torch.device, clock: Callable[[], float], threads: int
) -> tuple[float, list[float]]:
    torch.set_num_threads(threads)  # a new thread has OpenMP's default until then, which oneDNN's kernels would use

    def run(contender: Callable[[], object]) -> float:
        started = clock()
        contender()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock() - started

    # Plans, tables and the kernels' own choices are made in the first call, so nothing is judged by it alone.
    readings = [[run(contender)] for contender in contenders]
    others, spent = list(range(1, len(contenders))), 0.0
    for turn in range(1, READINGS[1]):
        running = [0, *others]
        for number in running if turn % 2 else reversed(running):
            readings[number].append(run(contenders[number]))
            spent += readings[number][-1]
        margin, times = 1 + NOISE / sqrt(turn), [_time(each) for each in readings]
        most = margin * min(GAIN * times[0], *times)
        others = [number for number in others if times[number] <= most or not _steady(readings[number])]
        clear = _steady(readings[0]) and all(margin * times[number] <= GAIN * times[0] for number in others)
        enough = turn + 1 >= READINGS[0]
        if not others or (clear and (enough or len(others) == 1)) or (enough and spent > SECONDS):
            break
    return times[0], [each / times[0] for each in times]


def _time(readings: list[float]) -> float:
    lower = sorted(readings)[: (len(readings) + 1) // 2]
    return sum(lower) / len(lower)


def _steady(readings: list[float]) -> bool:
    """Whether the least reading has another one near it."""
    least, next_one = sorted(readings)[:2]
    return next_one <= STEADY * least
