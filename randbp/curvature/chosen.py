"""The choice of layers that are preconditioned, with reasons why others take plain steps."""

from collections.abc import Collection, Container, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..layers import layer, own_parameters, runs_pytorchs_forward
from ..text.near_words import nearest
from .factor_hooks import Statistics
from .places import COMPUTED, FROZEN, NOT_HELD, NOT_REAL, SHARDED, SHARED, TWO_WAYS, Place

NOT_CALLED = "it was not called in training"
NOT_SEEN = (
    "it has a gradient, but its forward pass was not seen: it ran in eval mode, its weight is read without calling it, "
    "or torch.compile had made a graph of it before this optimiser was made (call torch.compiler.reset())"
)
NO_CALL = "its forward pass calls no F.conv*, F.linear or torch.addmm with a weight of its own"
NO_PASS = "its gradient came without a backward pass that could be used (torch.autograd.grad, an empty batch)"

DELIBERATE = frozenset({FROZEN, NOT_CALLED})
"""Reasons of which nobody has to be told, and :data:`NOT_HELD` from the start is another one."""


def candidates(model: nn.Module, layers: str | Iterable[str] | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that may be preconditioned, and reasons why other named layers never are; both by name.

    Raises:
        ValueError: If ``layers`` are no names or globs, or one matches no layer.
    """
    found: dict[str, nn.Module] = {}
    never: dict[str, str] = {}
    for name, module in model.named_modules():
        if (kind := layer(module)) is None:
            continue
        if kind.exact:
            never[name] = kind.exact
        else:
            found[name] = module
    if layers is None:
        return found, never
    try:
        patterns = [layers] if isinstance(layers, str) else list(layers)
    except TypeError:
        patterns = []
    if not patterns:
        raise ValueError(f"layers={layers!r:.60}: expected names or globs, or None for all that can be preconditioned")
    for pattern in patterns:
        if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in [*found, *never]):
            names = ", ".join(map(repr, list(found)[:8])) + (", …" if len(found) > 8 else "")
            meant = nearest(pattern, found)
            raise ValueError(f"layers={pattern!r}: matches none of the layers {names or '(there are none)'}{meant}")

    def named(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return {n: m for n, m in found.items() if named(n)}, {n: reason for n, reason in never.items() if named(n)}


def shared_parameters(model: nn.Module) -> set[Tensor]:
    """Parameters that belong to more than one module."""
    found: set[Tensor] = set()
    shared: set[Tensor] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if parameter in found else found).add(parameter)
    return shared


def left_by_parameters(place: Place, held: Container[Tensor], shared: Container[Tensor], largest: float) -> str:
    """The reason in its parameters why a layer's weight is not preconditioned; empty if there is none."""
    weight = place.parameter
    if weight is None:
        return COMPUTED if runs_pytorchs_forward(place.module) else ""  # the next call tells
    if not weight.is_floating_point():
        return NOT_REAL
    if not weight.requires_grad:
        return FROZEN
    if weight in shared:
        return SHARED
    if weight not in held:
        return NOT_HELD
    if not weight.numel():
        return "its weight is empty"
    if place.form is not None and max(place.shape(weight, place.added_bias is not None)[1:]) > largest:
        return f"its larger factor has more than largest={largest} rows"
    return place.left if place.left in (TWO_WAYS, SHARDED) else ""


def left_by_calls(modules: Mapping[str, nn.Module], statistics: Statistics, known: Collection[Any]) -> dict[str, str]:
    """Reasons, by layer name, why no curvature was seen in a step in which it should have been."""
    left: dict[str, str] = {}
    by_layer: dict[str, list[Place]] = {name: [] for name in modules}
    for place in statistics.places.values():
        by_layer[place.layer].append(place)
    for name, module in modules.items():
        places = by_layer[name]
        has_grad = any(parameter.grad is not None for _, parameter in own_parameters(module))
        trouble = statistics.trouble.get(name, "")
        if trouble and not (trouble == COMPUTED and runs_pytorchs_forward(module)):  # that is told by parameters
            left[name] = trouble
        elif name not in statistics.called:
            left[name] = NOT_SEEN if has_grad else NOT_CALLED
        elif not places and not runs_pytorchs_forward(module):
            left[name] = NO_CALL
        elif has_grad and not any(place in known or place.left or place.passed_over for place in places):
            left[name] = NO_PASS
    return left


def summary(optimizer: str, left: Mapping[str, str]) -> str:
    """One line about the layers that take plain steps.

    Example:
        >>> summary("KFAC", {"a": "it is large", "b": "it is shared", "c": "it is large"})
        "KFAC: plain steps for 3 layers: 'a', 'c' (it is large); 'b' (it is shared); all are in left_plain"
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    parts = []
    for reason, names in by_reason.items():
        parts.append(", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
        parts[-1] += f" ({reason})"
    layers = f"{len(left)} layer{'s'[: len(left) != 1]}"
    return f"{optimizer}: plain steps for {layers}: {'; '.join(parts)}; all are in left_plain"
