"""Statistics over the runs of a group."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import numpy


@dataclass(frozen=True)
class Statistic:
    """Mean over runs, and standard deviation (``n - 1``) if there is more than one run and all values are finite.

    Example:
        >>> Statistic.of([1.0, 3.0])
        Statistic(mean=2.0, std=1.4142135623730951, values=(1.0, 3.0))
        >>> Statistic.of([1.0, float("nan")])
        Statistic(mean=nan, std=None, values=(1.0, nan))
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Statistic | None":
        """The statistic of some values; ``None`` if there are none."""
        values = tuple(values)
        if not values:
            return None
        with numpy.errstate(all="ignore"):
            mean = float(numpy.mean(values))
            std = float(numpy.std(values, ddof=1)) if len(values) > 1 else None
        return cls(mean, std if std is not None and isfinite(std) else None, values)

    def over(self, unit: float) -> "Statistic | None":
        """The statistic of the values divided by a unit."""
        return Statistic.of(value / unit for value in self.values)
