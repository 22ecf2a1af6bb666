"""Races by a clock of their own: who is called how often, and how often the right one is found."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from random import Random

import pytest
import torch

from randbp.estimators.race import GAIN, READINGS, SECONDS, race

CPU = torch.device("cpu")


class Track:
    """Contenders that take the seconds they are told to, by a clock that only they move."""

    def __init__(self, *seconds: Iterator[float]) -> None:
        self.now, self.calls = 0.0, [0] * len(seconds)
        self.contenders = [self._contender(number, each) for number, each in enumerate(seconds)]

    def _contender(self, number: int, seconds: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.calls[number] += 1
            self.now += next(seconds)

        return run

    def race(self) -> list[float]:
        return race(self.contenders, CPU, lambda: self.now)[1]


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [
        ((0.001, 0.0005), [2, 2]),  # clearly gains
        ((0.001, 0.002), [2, 2]),  # clearly does not
        ((0.001, 0.00095), [READINGS[1]] * 2),  # open to the end, and cheap
        ((0.1, 0.095), [3, 3]),  # open to the end, but it takes long
        ((0.001, 0.002, 0.0005), [2, 2, 2]),
        ((0.001, 0.0005, 0.00051), [3, 3, 3]),  # both gain, and which of them is of little concern
        ((0.001, 0.0005, 0.0007), [2, 2, 2]),  # the last is no rival for the second
        ((0.001, 0.00095, 0.002), [READINGS[1], READINGS[1], 2]),
    ],
    ids=str,
)
def test_contenders_run_as_long_as_it_is_open_who_is_the_fastest(seconds: tuple[float, ...], calls: list[int]) -> None:
    track = Track(*map(repeat, seconds))
    assert track.race() == pytest.approx([each / seconds[0] for each in seconds])
    assert track.calls == calls


def test_what_the_first_call_prepares_and_other_work_do_not_count() -> None:
    exact, faster = chain([0.3], repeat(0.01)), chain([5.0, 0.02], repeat(0.006))
    track = Track(exact, faster)
    assert track.race() == pytest.approx([1, 0.6])
    assert max(track.calls) <= 4
    exact, slower = chain([0.3, 0.02], repeat(0.01)), chain([5.0], repeat(0.0102))
    assert Track(exact, slower).race()[1] > GAIN


def test_a_race_that_is_open_ends_when_its_seconds_are_spent() -> None:
    track = Track(repeat(0.011), repeat(0.0105))
    track.race()
    assert track.now < 2 * SECONDS and track.calls[0] > 3


def symmetric(random: Random, noise: float) -> float:
    """Of both signs."""
    return max(0.5, random.gauss(1, noise))


def additive(random: Random, noise: float) -> float:
    """As other work on the machine adds."""
    return 1 + abs(random.gauss(0, noise))


def interrupted(random: Random, noise: float) -> float:
    """Now and then another program runs for a time slice."""
    return symmetric(random, noise) + (random.random() < 0.1) * random.uniform(0.5, 3)


RACES = 300  # one in twenty of them is 15 by expectation, and by chance from 8 to 23 with probability 0.96


@pytest.mark.parametrize("shape", [symmetric, additive, interrupted])
@pytest.mark.parametrize(("seconds", "noise"), [(0.001, 0.05), (0.1, 0.02)])
@pytest.mark.parametrize(
    ("times", "allowed", "share"),
    [
        ((1, 0.9), {1}, 0.95),  # a gain of a tenth is found
        ((1, 1.0, 0.9), {2}, 0.95),
        ((1, 0.9, 0.9), {1, 2}, 0.95),
        ((1, 0.9, 0.6), {2}, 0.99),
        ((1, 1.0), {0}, 0.9),  # none is rarely seen
        ((1, 1.05), {0}, 0.98),
        ((1, 1.05, 1.5), {0}, 0.98),
    ],
    ids=str,
)
def test_gains_are_found_under_noise(
    times: tuple[float, ...], allowed: set[int], share: float, seconds: float, noise: float, shape: Callable[..., float]
) -> None:
    random, found = Random(7), 0

    def readings(time: float) -> Iterator[float]:
        while True:
            yield seconds * time * shape(random, noise)

    for _ in range(RACES):
        track = Track(*map(readings, times))
        ratios = track.race()
        best = min(range(len(times)), key=ratios.__getitem__)
        found += (best if ratios[best] <= GAIN else 0) in allowed
        assert max(track.calls) <= READINGS[1]
    assert found >= share * RACES
