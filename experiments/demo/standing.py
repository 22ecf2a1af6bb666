"""A method in comparison with exact backpropagation: ratios of bytes and time, paired differences of accuracy."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Literal

import torch

from randbp.diagnostics.significance import Interval, mean_interval
from randbp.diagnostics.timing import quartiles
from randbp.report.statistic import Statistic

from .methods import Method, Methods

CONFIDENCE = 0.95
SAME_TIME = 0.02
"""Ratios of times that differ from one by at most this much do not count, however certain they are."""

SAME_BYTES = 0.05

Verdict = Literal["better", "same", "worse", "open"]
"""``open``: seeds differ by less than the methods, but too few were trained to tell that from chance."""


@dataclass(frozen=True)
class Standing:
    """One method in comparison with the exact one."""

    method: Method
    exact: Method

    @property
    def trained(self) -> bool:
        """Whether the method has accuracies; else it was only timed, and nothing below may be asked about them."""
        return self.method.trained

    @cached_property
    def accuracy(self) -> Statistic:
        """Statistic of the accuracy over seeds."""
        return _over(self.method, "accuracy")

    @cached_property
    def gradient_error(self) -> float:
        """Gradient error, as a root mean square over seeds."""
        values = _over(self.method, "gradient_error").values
        return sqrt(sum(value**2 for value in values) / len(values))

    @cached_property
    def held(self) -> float:
        """Ratio of the bytes held for backward to exact."""
        return _over(self.method, "held_bytes").mean / _over(self.exact, "held_bytes").mean

    @cached_property
    def peak(self) -> float:
        """Ratio of peak memory to exact."""
        return _over(self.method, "peak_bytes").mean / _over(self.exact, "peak_bytes").mean

    @cached_property
    def seconds(self) -> float:
        """Median time of a step."""
        return quartiles(_seconds(self.method)).median

    @cached_property
    def ratios(self) -> list[float]:
        """Ratios of time to exact, one for each round of steps that took turns."""
        trainings = zip(self.method.trainings, self.exact.trainings, strict=False)
        pairs = (pair for ours, theirs in trainings for pair in zip(ours.seconds, theirs.seconds, strict=False))
        return [ours / theirs for ours, theirs in pairs]

    @cached_property
    def time(self) -> Interval:
        """Median of these ratios, with a confidence interval that assumes no distribution."""
        return median_interval(self.ratios)

    @cached_property
    def differences(self) -> list[float]:
        """Differences of accuracy to exact by seed; each pair starts from the same weights and sees the same images."""
        pairs = zip(self.accuracy.values, _over(self.exact, "accuracy").values, strict=True)
        return [ours - theirs for ours, theirs in pairs]

    @cached_property
    def difference(self) -> Interval:
        """Mean of these differences, with Student's confidence interval."""
        return mean_interval(torch.tensor(self.differences, dtype=torch.float64), CONFIDENCE)

    @property
    def spread(self) -> float:
        """Standard deviation of the exact method's accuracy over seeds; zero of one seed."""
        return _over(self.exact, "accuracy").std or 0.0

    @property
    def bytes_verdict(self) -> Verdict:
        """Verdict on whether fewer bytes are held."""
        return "same" if abs(self.held - 1) < SAME_BYTES else "better" if self.held < 1 else "worse"

    @property
    def time_verdict(self) -> Verdict:
        """Verdict on whether a step takes less time, given the machine's noise."""
        if abs(self.time.estimate - 1) < SAME_TIME or self.time.low <= 1 <= self.time.high:
            return "same"
        return "better" if self.time.estimate < 1 else "worse"

    @property
    def accuracy_verdict(self) -> Verdict:
        """Verdict on whether accuracy differs by more than between seeds of the exact method."""
        difference = self.difference
        if not abs(difference.estimate) > self.spread:  # no number is not the same as any
            return "same" if abs(difference.estimate) <= self.spread else "worse"
        if difference.low <= 0 <= difference.high:
            return "open"
        return "better" if difference.estimate > 0 else "worse"


def standings(methods: Methods) -> list[Standing]:
    """The standing of each method, in the order of the methods."""
    return [Standing(method, methods.exact) for method in methods.methods]


def timing_noise(methods: Methods) -> float:
    """Noise of the machine: the interquartile range of the exact method's steps over their median."""
    low, median, high = quartiles(_seconds(methods.exact))
    return (high - low) / median


def median_interval(values: list[float]) -> Interval:
    """Median of independent values, and order statistics that enclose it with a probability of 95 %.

    The number of values below the median is binomial, so these are about the ``n/2 ± 0.98 √n``-th values.

    Example:
        >>> median_interval([float(value) for value in range(101)])
        Interval(estimate=50.0, low=40.0, high=60.0)
        >>> median_interval([2.0, 1.0])
        Interval(estimate=1.5, low=1.0, high=2.0)
    """
    ordered, count = sorted(values), len(values)
    reach = 0.98 * sqrt(count)
    low = max(0, round((count - 1) / 2 - reach))
    return Interval(quartiles(ordered).median, ordered[low], ordered[count - 1 - low])


def _over(method: Method, name: str) -> Statistic:
    statistic = Statistic.of(float(getattr(training, name)) for training in method.trainings)
    assert statistic is not None  # a method has trainings
    return statistic


def _seconds(method: Method) -> list[float]:
    return [seconds for training in method.trainings for seconds in training.seconds]
