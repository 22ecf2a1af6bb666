"""Distributions of the parameters of a W&B sweep: their settings and their quantiles."""

import math
from collections.abc import Callable
from itertools import accumulate
from statistics import NormalDist
from typing import Annotated, Any, ClassVar

from pydantic import Field, create_model, model_validator

from .schema import NotNegative, Number, Plain, Positive, Strict, allowed, at_key

EDGE = 2.0**-32
"""Quantiles are taken from here to one minus this, so that unbounded distributions stay finite."""
MOST = 2**53
"""The largest integer that is drawn: up to there each is a float, too."""
WEIGHTED = "categorical_w_probabilities"

Quantile = Callable[[float, Any], Any]


class Distribution(Strict):
    """A distribution of a parameter's values; each kind has its own settings.

    Example:
        >>> rate = NUMERIC["log_uniform_values"](distribution="log_uniform_values", min=1e-4, max=1.0)
        >>> round(rate.quantile(0.5), 6)
        0.01
    """

    inverse: ClassVar[Quantile]  # the value below which a draw lies with this probability
    distribution: str  # its name

    @property
    def size(self) -> float:
        """The number of values that a parameter can take, infinite for a continuous one."""
        it: Any = self
        match self.distribution:
            case "constant":
                return 1
            case "int_uniform":
                return int(it.max - it.min + 1)
            case "q_uniform":
                return round(it.max / it.q) - round(it.min / it.q) + 1
        return len(it.values) if self.distribution in LISTED else math.inf

    @property
    def choices(self) -> list[Any]:
        """All values of a parameter that can take finitely many."""
        it: Any = self
        match self.distribution:
            case "constant":
                return [it.value]
            case "int_uniform":
                return list(range(it.min, it.max + 1))
            case "q_uniform":
                return [multiple(round(it.min / it.q) + number, it.q) for number in range(int(self.size))]
        return list(it.values)

    def at(self, drawn: float) -> Any:
        """The value at a coordinate of the search space: an index, an integer, or else a probability."""
        it: Any = self
        match self.distribution:
            case "constant":
                return it.value
            case "categorical":
                return it.values[int(drawn)]
            case "int_uniform":
                return int(drawn)
        return self.quantile(drawn)

    def quantile(self, p: float) -> Any:
        """The ``p``-quantile: a draw lies below it with probability ``p``."""
        return type(self).inverse(min(max(p, EDGE), 1 - EDGE), self)

    @model_validator(mode="after")
    def _check_together(self) -> "Distribution":
        it: Any = self
        if self.distribution == WEIGHTED:
            given, total = it.probabilities, math.fsum(it.probabilities)
            if len(given) != len(it.values):
                raise at_key(
                    "probabilities", f"={given}: expected {len(it.values)} numbers, one for each of the values"
                )
            if abs(total - 1) > 1e-6:
                raise at_key("probabilities", f"={given}: expected numbers whose sum is 1, not {total:.6g}")
        elif self.distribution in NUMERIC:
            if "min" in self.model_fields_set and it.min > it.max:
                raise at_key("min", f"={it.min!r}: expected at most max={it.max!r}")
            self._check_finite()
        return self

    def _check_finite(self) -> None:
        try:
            finite = all(math.isfinite(self.quantile(p)) for p in (0, 1))
        except OverflowError:
            finite = False
        if not finite:
            values = f"{self.distribution}_values"
            hint = f" (its min and max are exponents; {values} takes the values themselves)" * (values in NUMERIC)
            raise ValueError(f"expected {self.distribution} with draws that a float can hold{hint}")


def _uniform(p: float, it: Any) -> float:
    return float(it.min + p * (it.max - it.min))


def _normal(p: float, it: Any) -> float:
    return float(it.mu + it.sigma * NormalDist().inv_cdf(p))


def _log_uniform_values(p: float, it: Any) -> float:
    low, high = math.log(it.min), math.log(it.max)
    return math.exp(low + p * (high - low))


def _beta(p: float, it: Any) -> float:
    from scipy.special import betaincinv

    return float(betaincinv(it.a, it.b, p))


def _weighted(p: float, it: Any) -> Any:
    possible = [(value, weight) for value, weight in zip(it.values, it.probabilities, strict=True) if weight > 0]
    reached = accumulate(weight / sum(it.probabilities) for _, weight in possible)
    found = (value for (value, _), below in zip(possible, reached, strict=True) if p < below)
    return next(found, possible[-1][0])


def _kind(name: str, inverse: Quantile, fields: dict[str, Any], rounded: bool = False) -> type[Distribution]:
    def to_multiple(p: float, it: Any) -> float:
        return multiple(round(inverse(p, it) / it.q), it.q)

    fields = fields | {"q": (Positive, 1)} if rounded else fields
    made = create_model(name, __base__=Distribution, **fields)
    made.inverse = to_multiple if rounded else inverse
    return made


_RANGE = dict.fromkeys(("min", "max"), (Number, ...))
_VALUES = dict.fromkeys(("min", "max"), (Positive, ...))
_INTEGER = Annotated[int, Field(ge=-MOST, le=MOST), allowed(f"an integer from -{MOST} to {MOST}")]
_WHOLE = dict.fromkeys(("min", "max"), (_INTEGER, ...))
_MOMENTS = {"mu": (Number, 0.0), "sigma": (NotNegative, 1.0)}
_SHAPES = dict.fromkeys(("a", "b"), (Positive, 1.0))
_LIST = {"values": (Annotated[list[Plain], Field(min_length=1)], ...)}
_SMOOTH: dict[str, tuple[Quantile, dict[str, Any]]] = {
    "uniform": (_uniform, _RANGE),
    "log_uniform": (lambda p, it: math.exp(_uniform(p, it)), _RANGE),
    "log_uniform_values": (_log_uniform_values, _VALUES),
    "normal": (_normal, _MOMENTS),
    "log_normal": (lambda p, it: math.exp(_normal(p, it)), _MOMENTS),
    "beta": (_beta, _SHAPES),
}
NUMERIC: dict[str, type[Distribution]] = {
    **{name: _kind(name, *it) for name, it in _SMOOTH.items()},
    # Of 1/x the logarithm is uniform: between these exponents, or so that x lies between these values.
    "inv_log_uniform": _kind("inv_log_uniform", lambda p, it: math.exp(-_uniform(1 - p, it)), _RANGE),
    "inv_log_uniform_values": _kind("inv_log_uniform_values", _log_uniform_values, _VALUES),
    **{f"q_{name}": _kind(f"q_{name}", *it, rounded=True) for name, it in _SMOOTH.items()},
    "int_uniform": _kind("int_uniform", _uniform, _WHOLE),
}
"""Distributions of numbers by W&B's names."""
LISTED: dict[str, type[Distribution]] = {
    "constant": _kind("constant", lambda p, it: it.value, {"value": (Plain, ...)}),
    "categorical": _kind("categorical", lambda p, it: it.values[int(p * len(it.values))], _LIST),
    WEIGHTED: _kind(WEIGHTED, _weighted, {**_LIST, "probabilities": (list[NotNegative], ...)}),
}
"""Distributions over what the file lists."""


def multiple(number: int, step: float) -> float:
    """A multiple of a step, without rounding noise in its last binary digits.

    Example:
        >>> multiple(3, 0.1), multiple(3, 2)
        (0.3, 6)
    """
    return number * step if isinstance(step, int) else float(f"{number * step:.15g}")
