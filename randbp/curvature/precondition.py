"""Preconditioning: gradients of weights and biases, as matrices, given to a method and put back."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .averages import follow
from .method import Method
from .pieces import Scaled
from .places import Place
from .sharding import is_sharded, shard, whole
from .weight_matrices import as_matrices, from_matrices

Directions = dict[Tensor, Tensor | Scaled]


def preconditioned(
    method: Method,
    places: Iterable[Place],
    states: Mapping[Tensor, dict[str, Any]],
    rates: Mapping[Tensor, float | Tensor],
    kl_clip: float | None,
) -> tuple[Directions, Tensor | float]:
    """Directions of weights and biases by parameter, and the factor that scales all of them."""
    directions: Directions = {}
    moved: list[Tensor] = []
    for place in places:
        weight, bias = place.parameter, place.added_bias
        if weight is None or weight.grad is None or place.form is None or (bias is not None and bias.grad is None):
            continue
        state = states.get(weight, {})
        follow(state, method.keys, weight)
        products: list[Tensor] | None = None if kl_clip is None else []
        directions |= _entrywise(method, place, state, products) or _matrices(method, place, state, products)
        moved += [product * rates[weight] ** 2 for product in products or ()]
    if kl_clip is None or not moved:
        return directions, 1.0
    total = torch.stack([each.to(moved[0].device, moved[0].dtype) for each in moved]).sum()
    return directions, (kl_clip / total.clamp_min(1e-30)).sqrt().clamp_max(1)


def _matrices(method: Method, place: Place, state: dict[str, Any], products: list[Tensor] | None) -> Directions:
    """What a method makes of the gradients as matrices, and its inner product with them where products are wanted."""
    weight, bias = place.parameter, place.added_bias
    assert place.form is not None and weight is not None and weight.grad is not None
    grad = whole(weight.grad) if place.view is None else place.view.of(whole(weight.grad), weight)
    shape = tuple(grad.shape)
    matrices = as_matrices(place.form, grad, None if bias is None else whole(bias.grad))
    matrices = matrices.to(torch.promote_types(weight.dtype, torch.float32))
    direction = method.direction(state, matrices)
    if direction is None:
        return {}
    if products is not None:
        products.append((direction * matrices).sum())
    part, rest = from_matrices(place.form, direction, shape)
    found: Directions = {weight: shard(part if place.view is None else place.view.back(part, weight), weight)}
    if bias is not None and rest is not None:
        found[bias] = shard(rest, bias)
    return found


def _entrywise(method: Method, place: Place, state: dict[str, Any], products: list[Tensor] | None) -> Directions:
    """The same of a method that multiplies entries; nothing of others, nor of gradients in another order or sharded."""
    weight, bias, form = place.parameter, place.added_bias, place.form
    assert form is not None and weight is not None and weight.grad is not None
    if place.view is not None or is_sharded(weight):
        return {}
    groups, outer, inner = place.shape(weight, bias is not None)
    factors = method.entrywise(state, groups, outer, inner)
    if factors is None:
        return {}
    rows, columns = factors
    own = columns if bias is None else columns[:, :-1]
    by_input, by_output = own.view(groups, -1, *weight.shape[2:]), rows.view(groups, outer, *[1] * (weight.dim() - 2))
    new = 2 if form.is_transposed else 1
    found = Scaled(weight.grad, (by_input.unsqueeze(new), by_output.unsqueeze(3 - new)), groups)
    if products is not None:
        products.append(found.dot())
    if bias is None or bias.grad is None:
        return {weight: found}
    of_bias = bias.grad * (rows * columns[:, -1:]).flatten()
    if products is not None:
        products.append((of_bias * bias.grad).sum())
    return {weight: found, bias: of_bias}
