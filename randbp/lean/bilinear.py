"""Products: each factor is held for the other's gradient, which is linear in it, so rounding it keeps that unbiased.

Several layers that read one tensor share its rounding: it only enters the gradients of their weights, which go no
further. A product of activations draws independent noise: in ``x (x y)`` the gradient of ``y`` passes through both
products, and ``E[x̃ x̃]`` would not be ``x²``, but for independent ``x̃`` and ``x̃'`` it is. For the same reason each
of the products that make up one of three or more factors draws its own.

Where nothing may be rounded, a factor that can be made again from what is held anyway is not held (:mod:`.recompute`).
Nothing but the shape is held of a factor that meets factors without a gradient, such as the input of a
convolution with a frozen weight.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.hooks import Hooks
from .lean_call import Call, is_activation, is_small
from .packed import ROUNDED, Known, Packed, packed_mask, packing, recomputed, rounded, shape_of
from .recompute import recipe_of

_CONVOLUTIONS = {getattr(F, f"conv{kind}{dims}d") for kind in ("", "_transpose") for dims in (1, 2, 3)}
"""Their third argument is a bias, whose gradient needs no factor."""


def product(cast: bool, call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run a product, holding rounded factors, or recipes for them; ``cast`` if autocast casts its factors."""
    given = [*args, *kwargs.values()]
    if not any(map(is_activation, given)):
        return NotImplemented
    if call.rounds and cast:  # so that a saved tensor can be recognised
        given = [cast_by_autocast(value) if is_activation(value) else value for value in given]
        args, kwargs = tuple(given[: len(args)]), dict(zip(kwargs, given[len(args) :], strict=True))
    tensors = [value for value in given if isinstance(value, Tensor)]
    factors = [factor for factor in tensors if is_activation(factor)]
    weights = [value for value in tensors if not any(value is factor for factor in factors)]
    masked = any(weight.dtype == torch.bool for weight in weights)
    bias = kwargs.get("bias", args[2] if len(args) > 2 else None) if call.function in _CONVOLUTIONS else None
    unread = len(factors) == 1 and not any(weight.requires_grad for weight in weights if weight is not bias)
    if not (call.rounds or masked or unread) and not any(recipe_of(factor) for factor in factors):
        return NotImplemented
    ends_here = len(factors) == 1 and all(weight.is_leaf for weight in weights)
    known: Known | None = ROUNDED if ends_here else {} if len(tensors) < 3 else None
    storages = {id(factor.untyped_storage()) for factor in factors}
    alive = {id(weight.untyped_storage()) for weight in weights if weight.layout is torch.strided}
    sizes = {weight.numel() for weight in weights}
    # Not the call itself: autograd keeps these functions, and so would keep its arguments.
    context, rounds, shape = call.context, call.rounds, factors[0].shape

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        if tensor.layout is not torch.strided:
            return None
        storage = id(tensor.untyped_storage())
        given = storage in storages
        if given and unread and storage not in alive and tensor.shape == shape:
            return shape_of(tensor)
        # PyTorch copies factors whose entries lie in another order than it needs, and saves the copies. Those of
        # weights are told by their size.
        copied = storage not in alive and tensor.numel() not in sizes and not is_small(tensor)
        if rounds and tensor.is_floating_point() and (given or copied):
            return rounded(tensor, context, outer, known)
        if given and (recipe := recipe_of(tensor)) is not None:
            return recomputed(recipe, outer)
        return packed_mask(tensor, outer)

    with packing(pack):
        return call.function(*args, **kwargs)


def cast_by_autocast(value: Any) -> Any:
    """Cast a floating tensor as autocast would."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
        return value
    kind = value.device.type
    return value.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else value
