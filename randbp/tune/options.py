"""Measurements of each layer: error, bytes and seconds of each candidate estimator."""

from collections.abc import Mapping
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
    """The options of each layer that was measured."""

    left_exact: Mapping[str, str]  # reasons, by name, why other chosen layers have no entry


def check_budget(budget: object, objective: object) -> None:
    """Raise ``ValueError`` unless given a share in ``(0, 1]`` and a known objective."""
    if objective not in ("memory", "time"):
        raise ValueError(f"objective={objective!r}: expected 'memory' or 'time'")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise ValueError(f"budget={budget!r}: expected a share of the exact layers' cost in (0, 1]")
