"""PReLU: one bit per entry for the input's gradient, and rounded negative entries for the slope's."""

from typing import Any

import torch
from torch import Tensor

from ..codecs import Blocks, Mask, Stream
from .lean_call import Call, is_activation, is_unadorned
from .lean_function import Made, run_lean
from .memory_order import flatten, memory_order, unflatten


def prelu(call: Call, input: Tensor, weight: Tensor) -> Any:
    """PReLU, whose slopes learn only where rounding is allowed.

    A bit per entry says where the input is positive, and ``min(x, 0)`` is held in a few bits if the slopes ``a`` learn.
    With ``v`` the output gradient, ``x̄ = v`` where ``x > 0`` and else ``a v``; ``ā`` is the sum of ``min(x, 0) v`` over
    the entries of a channel, linear in what is rounded.
    """
    if not is_activation(input) or input.dim() < 2 or not is_unadorned(weight):
        return NotImplemented
    learns, codec, order, shape = weight.requires_grad, Blocks(call.context.bits), memory_order(input), input.shape
    if learns and not call.rounds:
        return NotImplemented
    seed = call.context.seed() if learns else None

    def vjp(v: Tensor, wanted: Any, noise: Any, bits: Tensor, weight: Tensor, negative: Any) -> list[Tensor | None]:
        count = shape.numel()
        positive = unflatten(Mask().decode(bits, count), shape, order)
        slopes = weight if weight.numel() == 1 else weight.view(-1, *[1] * (len(shape) - 2))
        input_grad = torch.where(positive, v, v * slopes)
        if negative is None:
            return [input_grad, None]
        flat = codec.decode(negative, count, noise).to(v.dtype)
        each = unflatten(flat, shape, order).masked_fill(positive, 0) * v
        weight_grad = each.sum_to_size(slopes.shape if weight.numel() > 1 else (1,) * each.dim())
        return [input_grad, weight_grad.reshape(weight.shape).to(weight.dtype)]

    def make() -> Made:
        flat = flatten(input, order)
        negative = None if seed is None else codec.encode(flat.clamp(max=0), Stream(seed, input.device))
        return call.run(), (Mask().where(flat, "over"), weight, negative), vjp

    return run_lean("PReLU", make, input, weight, exact=not learns, seed=seed, linked=[input])
