"""Measurements of each layer: error, bytes and seconds of each candidate estimator."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..estimators import Estimator

Objective = Literal["memory", "time"]


@dataclass(frozen=True)
class Option:
    """The measurements of one estimator in one layer.

    Args:
        estimator: Estimator of the weight VJP.
        variance: Mean of ``‖ĝ - g‖²`` over draws, g the gradient of the layer's weight: the variance of an unbiased
            estimator.
        held_bytes: Held for the weight VJP from forward to backward.
        seconds: Time of the weight VJP, including drawing and storing what is held.
        spread: Standard error of ``variance``.
    """

    estimator: Estimator
    variance: float
    held_bytes: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class LayerOptions:
    """The options of one layer.

    Args:
        name: As in ``model.named_modules()``.
        norm_square: ``‖g‖²``.
        exact: The measurements of the exact VJP.
        candidates: The measurements of other estimators.
        shared_bytes: Bytes held by ``exact`` that others hold as well, so that an estimator does not free them.
        held_by: Names of these others.
    """

    name: str
    norm_square: float
    exact: Option
    candidates: tuple[Option, ...]
    shared_bytes: int = 0
    held_by: tuple[str, ...] = ()

    def cost(self, option: Option, objective: Objective, count_shared: bool = True) -> float:
        """Bytes or seconds of an option, in the unit of the objective."""
        if objective == "time":
            return option.seconds
        shared = self.shared_bytes if option is self.exact and not count_shared else 0
        return float(option.held_bytes - shared)


class Measured(tuple[LayerOptions, ...]):
    """The options of each layer that was measured.

    Attributes:
        left_exact: Reasons, by name, why other chosen layers have no entry.

    Example:
        >>> Measured([], {"head": "a lazy layer has no weight before its first call"}).left_exact["head"]
        'a lazy layer has no weight before its first call'
    """

    left_exact: Mapping[str, str]

    def __new__(cls, layers: Iterable[LayerOptions], left_exact: Mapping[str, str]) -> "Measured":
        """Make the tuple, with one more attribute."""
        made = super().__new__(cls, layers)
        made.left_exact = left_exact
        return made


def lower_hull(options: Iterable[tuple[float, float, Option]]) -> list[tuple[float, float, Option]]:
    """The lower convex hull of points (cost, variance), from the highest cost down, as long as the variance rises.

    These are the options that are best at some price per unit of cost. The first is the cheapest among those of least
    variance, the last the cheapest of all.

    Example:
        >>> [point[:2] for point in lower_hull([(4, 0, "a"), (3, 2, "b"), (2, 2, "c"), (1, 9, "d"), (1, 8, "e")])]
        [(4, 0), (2, 2), (1, 8)]
    """
    hull: list[tuple[float, float, Option]] = []
    for point in sorted(options, key=lambda point: (point[1], point[0])):
        if hull and point[0] >= hull[-1][0]:  # dearer, and no better
            continue
        while len(hull) > 1 and _price(hull[-1], point) <= _price(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _price(dear: tuple[float, float, Option], cheap: tuple[float, float, Option]) -> float:
    """Variance per unit of cost saved."""
    return (cheap[1] - dear[1]) / (dear[0] - cheap[0])
