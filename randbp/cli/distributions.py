"""Distributions of the parameters of a W&B sweep: their settings and their quantiles."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import NormalDist
from typing import Any

Settings = Mapping[str, Any]
RANGE: dict[str, float | None] = {"min": None, "max": None}
MOMENTS: dict[str, float | None] = {"mu": 0.0, "sigma": 1.0}
SHAPES: dict[str, float | None] = {"a": 1.0, "b": 1.0}
STEP: dict[str, float | None] = {"q": 1}
EDGE = 2.0**-32
"""Quantiles are taken from here to one minus this, so that unbounded distributions stay finite."""


@dataclass(frozen=True)
class Distribution:
    """A family of distributions of numbers."""

    settings: Mapping[str, float | None]  # their defaults by name, None where there is none
    quantile: Callable[[float, Settings], float]  # the value below which a draw lies with this probability
    positive: bool = False  # whether min must be above zero
    rounded: bool = False  # whether draws are rounded to the next multiple of the setting q


def _uniform(p: float, it: Settings) -> float:
    return float(it["min"] + p * (it["max"] - it["min"]))


def _normal(p: float, it: Settings) -> float:
    return float(it["mu"] + it["sigma"] * NormalDist().inv_cdf(p))


def _log_uniform_values(p: float, it: Settings) -> float:
    low, high = math.log(it["min"]), math.log(it["max"])
    return math.exp(low + p * (high - low))


def _beta(p: float, it: Settings) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(it["a"], it["b"], p))


_SMOOTH = {
    "uniform": Distribution(RANGE, _uniform),
    "log_uniform": Distribution(RANGE, lambda p, it: math.exp(_uniform(p, it))),
    "log_uniform_values": Distribution(RANGE, _log_uniform_values, positive=True),
    "normal": Distribution(MOMENTS, _normal),
    "log_normal": Distribution(MOMENTS, lambda p, it: math.exp(_normal(p, it))),
    "beta": Distribution(SHAPES, _beta),
}
NUMERIC: dict[str, Distribution] = {
    **_SMOOTH,
    # Of 1/x the logarithm is uniform: between these exponents, or so that x lies between these values.
    "inv_log_uniform": Distribution(RANGE, lambda p, it: math.exp(-_uniform(1 - p, it))),
    "inv_log_uniform_values": Distribution(RANGE, _log_uniform_values, positive=True),
    **{f"q_{name}": replace(it, settings={**it.settings, **STEP}, rounded=True) for name, it in _SMOOTH.items()},
    "int_uniform": Distribution(RANGE, _uniform),
}
"""Distributions of numbers by W&B's names."""

WEIGHTED = "categorical_w_probabilities"
LISTED: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    WEIGHTED: ("values", "probabilities"),
}
"""Distributions over what the file lists, with their settings."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a sweep.

    Example:
        >>> rate = Parameter(("lr",), "log_uniform_values", {"min": 1e-4, "max": 1.0})
        >>> round(rate.quantile(0.5), 6)
        0.01
    """

    path: tuple[str, ...]  # its keys from the outermost; more than one if it is nested
    distribution: str  # one of NUMERIC and LISTED
    settings: Settings  # of the distribution, defaults included

    @property
    def name(self) -> str:
        """The keys joined by dots."""
        return ".".join(self.path)

    @property
    def size(self) -> float:
        """The number of values that the parameter can take, infinite for a continuous one."""
        it = self.settings
        match self.distribution:
            case "constant":
                return 1
            case "int_uniform":
                return int(it["max"] - it["min"] + 1)
            case "q_uniform":
                return round(it["max"] / it["q"]) - round(it["min"] / it["q"]) + 1
        return len(it["values"]) if self.distribution in LISTED else math.inf

    @property
    def choices(self) -> list[Any]:
        """All values of a parameter that can take finitely many."""
        it = self.settings
        match self.distribution:
            case "constant":
                return [it["value"]]
            case "int_uniform":
                return list(range(it["min"], it["max"] + 1))
            case "q_uniform":
                first = round(it["min"] / it["q"])
                return [multiple(first + number, it["q"]) for number in range(int(self.size))]
        return list(it["values"])

    def quantile(self, p: float) -> Any:
        """The ``p``-quantile: a draw lies below it with probability ``p``."""
        p = min(max(p, EDGE), 1 - EDGE)
        it = self.settings
        if self.distribution == WEIGHTED:
            weights = it["probabilities"]
            possible = [number for number, weight in enumerate(weights) if weight > 0]
            reached = accumulate(weights[number] / sum(weights) for number in possible)
            found = (number for number, below in zip(possible, reached, strict=True) if p < below)
            return it["values"][next(found, possible[-1])]
        distribution = NUMERIC[self.distribution]
        value = distribution.quantile(p, it)
        return multiple(round(value / it["q"]), it["q"]) if distribution.rounded else value


def multiple(number: int, step: float) -> float:
    """A multiple of a step, without rounding noise in its last binary digits.

    Example:
        >>> multiple(3, 0.1), multiple(3, 2)
        (0.3, 6)
    """
    return number * step if isinstance(step, int) else float(f"{number * step:.15g}")
