"""All second-order optimisers, for the tests of what they have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from randbp.curvature import KFAC, SINGD, KroneckerInverse, Preconditioner

SHARED = ("factor_every", "inverse_every", "reduction", "layers", "kl_clip")


def before_adam(method: Any, model: nn.Module, lr: float = 1e-3, **options: Any) -> Optimizer:
    """Adam with a preconditioner in front of it."""
    given = {name: options.pop(name) for name in SHARED if name in options}
    return Preconditioner(model, method, **given).before(torch.optim.Adam(model.parameters(), lr, **options))


def singd(model: nn.Module, lr: float = 0.03, *, structures: str, inverse_every: int = 0, **options: Any) -> Optimizer:
    """SINGD, which refreshes nothing."""
    return SINGD(model, lr, structures=structures, **options)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "KFAC": KFAC,
    "KFAC expand": partial(KFAC, approximation="expand"),
    "SINGD": partial(singd, structures="diagonal"),
    "SINGD hierarchical": partial(singd, structures="hierarchical", approximation="expand"),
}
"""Optimisers by name, each of a model and options as :class:`KFAC` takes them."""

BEFORE_ADAM: dict[str, Callable[..., Optimizer]] = {"KFAC before Adam": partial(before_adam, KroneckerInverse())}
