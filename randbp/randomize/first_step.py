"""Tell, once and after the first step of an optimiser, which of the chosen layers it trained without an estimate."""

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
    """Waits for the first step of an optimiser that has parameters of a model's randomised layers.

    A layer whose parameters it has, but which was not called in training mode, or made no call that can be estimated,
    trains exactly, whatever its keep rate: one warning names all of them.

    Args:
        modules: The randomised layers; they are not kept alive.

    Attributes:
        over: Whether that step is over.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.over = False
        self._modules = weakref.WeakSet(module for module in modules if layer_state(module).estimates)
        if self._modules:
            _listen()
            _WAITING.append(self)

    def remove(self) -> None:
        """Wait no longer."""
        if self in _WAITING:
            _WAITING.remove(self)

    def after(self, optimizer: Optimizer) -> None:
        """A step is over; if it is the one, say what there is to say."""
        modules = {layer_state(module).name: module for module in list(self._modules) if is_randomized(module)}
        if not modules:
            self.remove()
            return
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        stepped = {
            name: module
            for name, module in modules.items()
            if any(parameter.requires_grad and id(parameter) in trained for parameter in own_parameters(module))
        }
        if not stepped:
            return
        self.remove()
        self.over = True
        reasons = left_exact(stepped, stepped=True)
        if reasons:
            warnings.warn(f"randomize: {summary(reasons, len(stepped) - len(reasons))}", stacklevel=2)


_WAITING: list[FirstStep] = []


@cache
def _listen() -> None:
    """Hear of the steps of all optimisers; PyTorch lets no such hook be removed while it runs, so it stays."""
    register_optimizer_step_post_hook(_after)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for waiting in list(_WAITING):
        waiting.after(optimizer)
