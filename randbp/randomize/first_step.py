"""One warning after an optimiser's first step about chosen layers that it has trained without an estimate."""

import warnings
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..layers import own_parameters
from .layers import is_randomized, layer_state
from .left_exact import left_exact, summary


class FirstStep:
    """Waits for the first steps of optimisers that have parameters of a model's randomised layers.

    A layer whose parameters are among them, but which was not called in training mode or made no call that can be
    estimated, is trained exactly, whatever its keep rate: a warning names all of them, once.

    Args:
        modules: The randomised layers; they are not kept alive.

    Attributes:
        over: Layers that an optimiser has trained.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.over: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._waiting = weakref.WeakSet(module for module in modules if layer_state(module).estimates)
        if self._waiting:
            _listen()
            _WAITING.append(self)

    def remove(self) -> None:
        """Stop waiting."""
        if self in _WAITING:
            _WAITING.remove(self)

    def after(self, optimizer: Optimizer) -> None:
        """Called after a step: warn about layers that it has trained for the first time and without an estimate."""
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        stepped = {layer_state(m).name: m for m in list(self._waiting) if is_randomized(m) and _is_trained(m, trained)}
        for module in stepped.values():
            self._waiting.remove(module)
            self.over.add(module)
        if not self._waiting:
            self.remove()
        reasons = left_exact(stepped, self.over)
        if reasons:
            warnings.warn(f"randomize: {summary(reasons, len(stepped) - len(reasons))}", stacklevel=2)


def _is_trained(module: nn.Module, trained: set[int]) -> bool:
    return any(parameter.requires_grad and id(parameter) in trained for _, parameter in own_parameters(module))


_WAITING: list[FirstStep] = []


@cache
def _listen() -> None:
    """Register one hook on the steps of all optimisers; it stays, as PyTorch lets no hook be removed while it runs."""
    register_optimizer_step_post_hook(_after)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for waiting in list(_WAITING):
        waiting.after(optimizer)
