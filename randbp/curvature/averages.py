"""Running averages in an optimiser's state, and the scales of what enters them."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .gathering import Seen
from .scaling import loss_scale

Reduction = Literal["mean", "sum", "tokens"]

Scales = Mapping[str, tuple[float, float]]
"""What the sums of a weight are to be multiplied by, to be its factors."""


def scales_of(taken: Mapping[str, Seen], reduction: Reduction) -> Scales:
    """Scales of both factors: a mean loss divides gradients by the number of terms, a scaled loss multiplies them."""
    if not taken:
        return {}
    squared = loss_scale() ** 2
    if reduction == "tokens":
        first = min(taken.values(), key=lambda seen: seen.order)
        terms = dict.fromkeys(taken, float(first.terms))
    else:
        terms = {key: seen.examples if reduction == "mean" else 1 / seen.examples for key, seen in taken.items()}
    return {key: (1 / seen.examples, terms[key] / squared) for key, seen in taken.items()}


def weight_of_next(state: dict[str, Any], decay: float, counter: str = "updates") -> float:
    """Count one more update, and return its weight in the average: early ones weigh all that was seen alike.

    Example:
        >>> state = {}
        >>> [weight_of_next(state, 0.6) for _ in range(4)]
        [1.0, 0.5, 0.4, 0.4]
    """
    count = state[counter] = state.get(counter, 0) + 1
    return max(1 - decay, 1 / count)


def finite(taken: Mapping[str, Seen], scales: Scales) -> dict[str, Seen]:
    """Select the entries whose factors are finite."""
    if not taken:
        return {}
    bounds = [
        (moment.bound * scale).isfinite()
        for key, seen in taken.items()
        for moment, scale in zip(seen.moments, scales[key], strict=True)
    ]
    good = torch.stack([bound.to(bounds[0].device) for bound in bounds]).tolist()
    return {key: seen for number, (key, seen) in enumerate(taken.items()) if good[2 * number] and good[2 * number + 1]}


def follow(state: dict[str, Any], keys: Iterable[str], parameter: Tensor) -> None:
    """Move the averages to a parameter's device and precision, in single precision at least."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    for key in keys:
        known = state.get(key)
        if known is not None and (known.dtype != dtype or known.device != parameter.device):
            state[key] = known.to(parameter.device, dtype)


def forget(states: Mapping[Tensor, dict[str, Any]], keys: Iterable[str], parameters: Iterable[Tensor]) -> None:
    """Drop the averages of all other parameters."""
    kept = set(parameters)
    for parameter, state in states.items():
        if parameter not in kept:
            for key in keys:
                state.pop(key, None)
