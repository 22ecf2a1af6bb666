"""Preconditioning: gradients of weights and biases, as matrices, given to a method and put back."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .averages import follow
from .method import Method
from .places import Place
from .sharding import shard, whole
from .weight_matrices import as_matrices, from_matrices


def preconditioned(
    method: Method,
    places: Iterable[Place],
    states: Mapping[Tensor, dict[str, Any]],
    rates: Mapping[Tensor, float | Tensor],
    kl_clip: float | None,
) -> tuple[dict[Tensor, Tensor], Tensor | float]:
    """Directions of weights and biases by parameter, and the factor that scales all of them."""
    directions: dict[Tensor, Tensor] = {}
    moved: list[Tensor] = []
    for place in places:
        weight, bias = place.parameter, place.added_bias
        if weight is None or weight.grad is None or place.form is None or (bias is not None and bias.grad is None):
            continue
        state = states.get(weight, {})
        follow(state, method.keys, weight)
        grad = whole(weight.grad) if place.view is None else place.view.of(whole(weight.grad), weight)
        shape = tuple(grad.shape)
        matrices = as_matrices(place.form, grad, None if bias is None else whole(bias.grad))
        matrices = matrices.to(torch.promote_types(weight.dtype, torch.float32))
        direction = method.direction(state, matrices)
        if direction is None:
            continue
        moved.append((direction * matrices).sum() * rates[weight] ** 2)
        part, rest = from_matrices(place.form, direction, shape)
        directions[weight] = shard(part if place.view is None else place.view.back(part, weight), weight)
        if bias is not None and rest is not None:
            directions[bias] = shard(rest, bias)
    if kl_clip is None or not moved:
        return directions, 1.0
    total = torch.stack([each.to(moved[0].device, moved[0].dtype) for each in moved]).sum()
    return directions, (kl_clip / total.clamp_min(1e-30)).sqrt().clamp_max(1)
