"""Running averages in an optimiser's state, and means over processes of what enters them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .gathering import Seen
from .scaling import loss_scale

Reduction = Literal["mean", "sum", "tokens"]

Scales = Mapping[str, tuple[float, float]]
"""What the sums of a weight are to be multiplied by, to be its factors."""

Shape = tuple[int, ...]


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


def weight_of_next(state: dict[str, Any], decay: float) -> float:
    """Count one more update, and return its weight in the average: early ones weigh all that was seen alike.

    Example:
        >>> state = {}
        >>> [weight_of_next(state, 0.6) for _ in range(4)]
        [1.0, 0.5, 0.4, 0.4]
    """
    count = state["updates"] = state.get("updates", 0) + 1
    return max(1 - decay, 1 / count)


def finite(taken: Mapping[str, Seen], scales: Scales) -> dict[str, Seen]:
    """Select the entries whose factors are finite."""
    if not taken:
        return {}
    bounds = [
        (moment.bound * scale).isfinite()
        for key, seen in taken.items()
        for moment, scale in zip((seen.input, seen.output_grad), scales[key], strict=True)
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
            for key in (*keys, "updates"):
                state.pop(key, None)


def processes() -> int:
    """Number of processes that train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def means_of_factors(
    taken: Mapping[str, Seen],
    scales: Scales,
    shapes: Mapping[str, tuple[int, int, int]],
    like: Tensor,
    agreed: bool,
    diagonals: tuple[bool, bool] = (False, False),
) -> dict[str, Seen]:
    """Average factors, or their diagonals, over the processes that have seen any; all must call this together."""
    wanted: dict[str, list[Shape]] = {}
    parts = {}
    for key, (groups, outer, inner) in shapes.items():
        sides = zip((inner, outer), diagonals, strict=True)
        wanted[key] = [(groups, rows) if diagonal else (groups, rows, rows) for rows, diagonal in sides]
        if (seen := taken.get(key)) is not None:
            moments = seen.input, seen.output_grad
            if [moment.shape for moment in moments] == wanted[key]:
                parts[key] = [moment.matrix() * scale for moment, scale in zip(moments, scales[key], strict=True)]
    means = {}
    for key, (input, output_grad) in means_over_processes(parts, wanted, like, agreed).items():
        means[key] = Seen(examples=1)
        means[key].input.add_matrix(input)
        means[key].output_grad.add_matrix(output_grad)
    return means


def means_over_processes(
    parts: Mapping[str, Sequence[Tensor]], shapes: Mapping[str, Sequence[Shape]], like: Tensor, agreed: bool
) -> dict[str, list[Tensor]]:
    """Average the tensors of each key over the processes that have any; all processes must call this together.

    Args:
        parts: This process's tensors.
        shapes: Their shapes, also of keys of which this process has none.
        like: A tensor whose device and data type all sums have.
        agreed: Whether all processes are known to have the same ``shapes``.
    """
    keys = sorted(shapes)
    if not agreed:
        known: list[Any] = [None] * processes()
        torch.distributed.all_gather_object(known, {key: shapes[key] for key in keys})
        keys = [key for key in keys if all(theirs.get(key) == shapes[key] for theirs in known)]
    if not keys:
        return {}
    given = [part for key in keys for part in parts.get(key) or map(like.new_zeros, shapes[key])]
    counts = like.new_tensor([float(key in parts) for key in keys])
    flat = torch.cat([*(part.flatten().to(like) for part in given), counts])
    torch.distributed.all_reduce(flat)
    *sums, numbers = flat.split([*(part.numel() for part in given), len(keys)])
    every = iter(zip(sums, given, strict=True))
    means: dict[str, list[Tensor]] = {}
    for key, count in zip(keys, numbers.tolist(), strict=True):
        found = [next(every) for _ in shapes[key]]
        if count:
            means[key] = [(total.view(part.shape) / count).to(part.dtype) for total, part in found]
    return means
