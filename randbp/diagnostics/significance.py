"""Means with confidence intervals, t-tests and their multiplicity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, inf, isfinite, nan, pi, sin, sqrt

from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> "Interval":
        """The interval of an increasing function of the estimated quantity.

        Example:
            >>> Interval(4.0, 1.0, 9.0).map(sqrt)
            Interval(estimate=2.0, low=1.0, high=3.0)
        """
        return Interval(function(self.estimate), function(self.low), function(self.high))

    def __str__(self) -> str:
        if not isfinite(self.estimate):
            return "–"
        digits = 3 if abs(self.estimate) < 10 else 1
        half = (self.high - self.low) / 2
        return f"{self.estimate:.{digits}f}" + (f" ± {half:.{digits}f}" if isfinite(half) else "")


def mean_interval(values: Tensor, confidence: float) -> Interval:
    """Mean of independent values ``[n]`` with Student's interval ``m ± t·s/√n``."""
    count, mean = len(values), values.double().mean().item() if len(values) else nan
    if count < 2:
        return Interval(mean, -inf, inf)
    half = t_quantile(0.5 + confidence / 2, count - 1) * values.double().std().item() / sqrt(count)
    return Interval(mean, mean - half, mean + half)


def t_test(values: Tensor, rounding: float = 0.0, one_sided: bool = False) -> float:
    """P-value of Student's t-test of ``E values = 0``, against positive means alone if one-sided.

    The independent values are ``[n]``, n ≥ 2; the mean's floating-point error ``rounding`` adds to its standard error.
    """
    mean, error = values.double().mean().item(), values.double().std().item() / sqrt(len(values))
    error = sqrt(error**2 + rounding**2)
    if not error:
        return 0.0 if (mean > 0 if one_sided else mean) else 1.0
    tail = 1 - t_distribution((mean if one_sided else abs(mean)) / error, len(values) - 1)
    return max(0.0, min(1.0, tail if one_sided else 2 * tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those below α makes any false rejection happen with probability at most α.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics, 1979.

    Example:
        >>> holm([0.5, 0.01, 0.04])
        [0.5, 0.03, 0.08]
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def t_distribution(t: float, degrees: int) -> float:
    """Student's distribution function, by its finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = atan(abs(t) / sqrt(degrees))
    square = cos(angle) ** 2
    odd = degrees % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):  # 1, 1/2, 1·3/(2·4) … or cos, 2/3 cos³ …
        total += term
        term *= k / (k + 1) * square
    central = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return 0.5 + (central / 2 if t > 0 else -central / 2)


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's distribution for a probability above one half, by bisection."""
    low, high = 0.0, 1.0
    while t_distribution(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, degrees) < probability else (low, middle)
    return high
