"""Reasons, seen when a model runs, why chosen layers stay exact; :mod:`randbp.layers.rule` has those known before."""

from collections.abc import Container, Mapping

from torch import nn

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
    """Reasons, by name, why randomised layers have stayed exact so far.

    Args:
        modules: The layers.
        stepped: Modules that should have been called by now.
    """
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
    """One sentence on layers that stay exact.

    Args:
        reasons: Reasons by name of the layer.
        served: Number of layers that do not stay exact.
    """
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
