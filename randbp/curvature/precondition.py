"""Preconditioning: gradients multiplied by inverse factors."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .averages import follow
from .places import Place
from .sharding import shard, whole
from .weight_matrices import as_matrices, from_matrices


def preconditioned(
    places: Iterable[Place],
    states: Mapping[Tensor, dict[str, Any]],
    rates: Mapping[Tensor, float | Tensor],
    kl_clip: float | None,
) -> tuple[dict[Tensor, Tensor], Tensor | float]:
    """``Γ⁻¹ G A⁻¹`` of weights and biases by parameter, and the factor that scales all of them."""
    directions: dict[Tensor, Tensor] = {}
    moved: list[Tensor] = []
    for place in places:
        weight, bias = place.parameter, place.added_bias
        state = {} if weight is None else states.get(weight, {})
        if weight is None or weight.grad is None or place.form is None or (bias is not None and bias.grad is None):
            continue
        follow(state, weight)
        left, right = state.get("output_grad_inverse"), state.get("input_inverse")
        groups, outer, inner = place.shape(weight, bias is not None)
        if (
            left is None
            or right is None
            or (left.shape, right.shape) != ((groups, outer, outer), (groups, inner, inner))
        ):
            continue  # the bias was frozen, or the weight has another shape, since they were inverted
        grad = whole(weight.grad) if place.view is None else place.view.of(whole(weight.grad), weight)
        shape = tuple(grad.shape)
        grad = as_matrices(place.form, grad, None if bias is None else whole(bias.grad)).to(left.dtype)
        direction = left @ grad @ right
        moved.append((direction * grad).sum() * rates[weight] ** 2)
        part, rest = from_matrices(place.form, direction, shape)
        directions[weight] = shard(part if place.view is None else place.view.back(part, weight), weight)
        if bias is not None and rest is not None:
            directions[bias] = shard(rest, bias)
    if kl_clip is None or not moved:
        return directions, 1.0
    total = torch.stack([each.to(moved[0].device, moved[0].dtype) for each in moved]).sum()
    return directions, (kl_clip / total.clamp_min(1e-30)).sqrt().clamp_max(1)
