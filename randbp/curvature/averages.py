"""Running averages of factors in an optimiser's state, over steps and over processes."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .gathering import Seen
from .inverse import damped_inverses
from .scaling import loss_scale

NAMES = ("input", "output_grad")
KEYS = tuple(f"{name}_{what}" for what in ("factor", "inverse") for name in NAMES)

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


def update(state: dict[str, Any], seen: Seen, scales: tuple[float, float], decay: float) -> None:
    """Update the averages with the factors that a step's backward passes have seen."""
    count = state["updates"] = state.get("updates", 0) + 1
    weight = max(1 - decay, 1 / count)  # early averages weigh all that was seen alike
    for name, moment, scale in zip(NAMES, (seen.input, seen.output_grad), scales, strict=True):
        known = state.get(f"{name}_factor")
        if known is not None and known.shape != moment.shape:  # the bias was frozen, or the weight has another shape
            known = None
        state[f"{name}_factor"] = moment.averaged(known, weight, scale)


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


def invert(state: dict[str, Any], damping: float) -> None:
    """Invert the averages, if there are any and the inverses are finite."""
    if "input_factor" in state:
        inverses = damped_inverses(state["input_factor"], state["output_grad_factor"], damping)
        if all(bool(inverse.isfinite().all()) for inverse in inverses):
            state |= {f"{name}_inverse": inverse for name, inverse in zip(NAMES, inverses, strict=True)}


def follow(state: dict[str, Any], parameter: Tensor) -> None:
    """Move the averages to a parameter's device and precision, in single precision at least."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    for key in KEYS:
        known = state.get(key)
        if known is not None and (known.dtype != dtype or known.device != parameter.device):
            state[key] = known.to(parameter.device, dtype)


def processes() -> int:
    """Number of processes that train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def over_processes(
    taken: Mapping[str, Seen],
    scales: Scales,
    shapes: Mapping[str, tuple[int, int, int]],
    like: Tensor,
    agreed: bool,
) -> dict[str, Seen]:
    """Average factors over the processes that have seen any; all processes must call this together."""
    keys = sorted(shapes)
    if not agreed:
        known: list[Any] = [None] * processes()
        torch.distributed.all_gather_object(known, {key: shapes[key] for key in keys})
        keys = [key for key in keys if all(theirs.get(key) == shapes[key] for theirs in known)]
    if not keys:
        return {}
    parts, counts = [], []
    for key in keys:
        groups, outer, inner = shapes[key]
        wanted = [(groups, rows, rows) for rows in (inner, outer)]
        seen = taken.get(key)
        moments = () if seen is None else (seen.input, seen.output_grad)
        counts.append(float([moment.shape for moment in moments] == wanted))
        if counts[-1]:
            parts += [moment.matrix() * scale for moment, scale in zip(moments, scales[key], strict=True)]
        else:
            parts += [like.new_zeros(shape) for shape in wanted]
    flat = torch.cat([*(part.flatten().to(like) for part in parts), like.new_tensor(counts)])
    torch.distributed.all_reduce(flat)
    *sums, numbers = flat.split([*(part.numel() for part in parts), len(counts)])
    means = {}
    for index, (key, count) in enumerate(zip(keys, numbers.tolist(), strict=True)):
        if count:
            means[key] = Seen(examples=1)
            for moment, at in ((means[key].input, 2 * index), (means[key].output_grad, 2 * index + 1)):
                moment.add_matrix((sums[at].view(parts[at].shape) / count).to(parts[at].dtype))
    return means


def forget(states: Mapping[Tensor, dict[str, Any]], parameters: Iterable[Tensor]) -> None:
    """Drop the averages of all other parameters."""
    kept = set(parameters)
    for parameter, state in states.items():
        if parameter not in kept:
            for key in (*KEYS, "updates"):
                state.pop(key, None)
