"""Why chosen layers stay exact, as seen when a model runs, and one warning of it after an optimiser's first step.

:mod:`randbp.layers.rule` has the reasons that are known before.
"""

import warnings
import weakref
from collections.abc import Container, Iterable, Mapping
from functools import cache
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..layers import own_parameters
from .layers import is_randomized, layer_state
from .selection import shortened

NOT_CALLED = "not called in training mode so far"
READ_ELSEWHERE = "not called so far: other code reads its weight"
NO_CALL = (
    "its forward pass calls none of F.conv*, F.conv_transpose*, F.linear and torch.addmm with a weight made from its "
    "own parameters"
)


def left_exact(modules: Mapping[str, nn.Module], stepped: Container[nn.Module]) -> dict[str, str]:
    """Reasons, by name, why randomised layers have stayed exact so far; ``stepped`` ones should have been called."""
    found = {name: _reason(module, module in stepped) for name, module in modules.items()}
    return {name: reason for name, reason in found.items() if reason}


def left_exact_of(model: nn.Module) -> dict[str, str]:
    """:func:`left_exact` for a model that has just run, including layers of which it was known from the start."""
    modules = {name: module for name, module in model.named_modules() if is_randomized(module)}
    known: dict[str, str] = {}
    for module in modules.values():
        known |= layer_state(module).left_exact
    return known | left_exact(modules, tuple(modules.values()))


def summary(reasons: Mapping[str, str], served: int) -> str:
    """One sentence on layers that stay exact, by their reasons, and the number of those that do not."""
    listed = "; ".join(f"{shortened(names, 3)} ({reason})" for reason, names in _by_reason(reasons).items())
    return f"{len(reasons)} of {len(reasons) + served} chosen layers stay exact: {listed}"


def left_exact_lines(reasons: Mapping[str, str]) -> list[str]:
    """Lines below a table on layers that stay exact, one for each reason."""
    return [f"left exact: {', '.join(names)} ({reason})" for reason, names in _by_reason(reasons).items()]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(repr(name))
    return found


def _reason(module: nn.Module, stepped: bool) -> str:
    state = layer_state(module)
    if not state.estimates or state.stream.drew or state.seen.served:
        return ""
    if state.seen.called:
        return NO_CALL
    if not stepped:
        return ""
    read = any(parameter.grad is not None for _, parameter in own_parameters(module))
    return READ_ELSEWHERE if read else NOT_CALLED


class FirstStep:
    """Waits for the first steps of optimisers that have parameters of a model's randomised layers.

    A layer whose parameters are among them, but which was not called in training mode or made no call that can be
    estimated, is trained exactly, whatever its keep rate: a warning names all of them, once. No layer is kept alive.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.over: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # layers that an optimiser has trained
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
