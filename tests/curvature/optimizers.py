"""All second-order optimisers, for the tests of what they have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from randbp.curvature import (
    EKFAC,
    KFAC,
    SINGD,
    EigenvalueCorrected,
    KroneckerInverse,
    Preconditioner,
    StructuredInverseFree,
)


def singd(model: nn.Module, lr: float = 0.03, *, structures: str, inverse_every: int = 0, **options: Any) -> SINGD:
    """SINGD, which refreshes nothing."""
    return SINGD(model, lr, structures=structures, **options)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "KFAC": KFAC,
    "KFAC expand": partial(KFAC, approximation="expand"),
    "KFAC low rank": partial(KFAC, rank=24),
    "EKFAC": EKFAC,
    "EKFAC expand": partial(EKFAC, approximation="expand"),
    "SINGD": partial(singd, structures="diagonal"),
    "SINGD hierarchical": partial(singd, structures="hierarchical", approximation="expand"),
}
"""Optimisers by name, each of a model and options as :class:`KFAC` takes them."""


class BeforeAdam(torch.optim.Adam):
    """Adam with a preconditioner in front of it, which takes the options of both."""

    def __init__(self, model: nn.Module, method: Any, lr: float = 1e-3, **options: Any) -> None:
        adams = {name: options.pop(name) for name in ("weight_decay", "betas") if name in options}
        super().__init__(model.parameters(), lr, **adams)
        self.preconditioner = Preconditioner(model, method, **options)
        self.preconditioner.before(self)

    @property
    def steps(self) -> int:
        """Number of steps of the preconditioner."""
        return self.preconditioner.steps


BEFORE_ADAM: dict[str, Callable[..., Any]] = {
    "KFAC before Adam": partial(BeforeAdam, method=KroneckerInverse()),
    "EKFAC before Adam": partial(BeforeAdam, method=EigenvalueCorrected("expand")),
    "SINGD before Adam": partial(BeforeAdam, method=StructuredInverseFree()),
}


EVERY = {**OPTIMIZERS, **BEFORE_ADAM}


def curvature(optimizer: Any) -> dict[Any, dict[str, Any]]:
    """The state by weight, of whom preconditions."""
    state: dict[Any, dict[str, Any]] = getattr(optimizer, "preconditioner", optimizer).state
    return state


def method_of(optimizer: Any) -> Any:
    """The method, of whom preconditions."""
    return getattr(optimizer, "preconditioner", optimizer).method


def known(optimizer: Any, weight: nn.Parameter) -> dict[str, torch.Tensor]:
    """What the method keeps of a weight."""
    state = curvature(optimizer)[weight]
    return {key: state[key] for key in method_of(optimizer).keys if key in state}
