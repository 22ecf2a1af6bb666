"""PReLU: one bit per entry for the input's gradient, and rounded negative entries for the slope's."""

from typing import Any

import torch
from torch import Tensor

from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..codecs import Blocks, Mask, Stream
from .lean_call import Call, is_activation, is_unadorned
from .memory_order import flatten, memory_order, unflatten


class _PReLU(torch.autograd.Function):
    """Holds where the input is positive, and ``min(x, 0)`` in a few bits if the slopes ``a`` learn.

    With ``v`` the output gradient, ``x̄ = v`` where ``x > 0`` and else ``a v``; ``ā`` is the sum of ``min(x, 0) v``
    over the entries of a channel, linear in what is rounded.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, edge: Tensor | None, call: Call) -> Tensor:
        ctx.order, ctx.shape = memory_order(x), x.shape
        flat = flatten(x, ctx.order)
        ctx.kind, negative, seed = Blocks(call.context.bits), None, None
        if ctx.needs_input_grad[1]:
            seed = torch.tensor(call.context.seed())
            negative = ctx.kind.encode(flat.clamp(max=0), Stream(int(seed), x.device))
        ctx.save_for_backward(Mask().where(flat, "over"), weight, negative, seed, edge)
        y: Tensor = call.run()
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = output_grads
        bits, weight, negative, seed, edge = ctx.saved_tensors
        count = ctx.shape.numel()
        positive = unflatten(Mask().decode(bits, count), ctx.shape, ctx.order)
        slopes = weight if weight.numel() == 1 else weight.view(-1, *[1] * (len(ctx.shape) - 2))
        input_grad = torch.where(positive, grad, grad * slopes)
        if negative is None:
            return input_grad, None, None, None
        with torch.no_grad():
            flat = ctx.kind.decode(negative, count, Stream(int(seed), grad.device)).to(grad.dtype)
            each = unflatten(flat, ctx.shape, ctx.order).masked_fill(positive, 0) * grad
            weight_grad = each.sum_to_size(slopes.shape if weight.numel() > 1 else (1,) * each.dim())
        grads = (input_grad, weight_grad.reshape(weight.shape).to(weight.dtype))
        return (*refuse_second_derivatives("lean PReLU", grads, (edge, weight, grad)), None, None)


def prelu(call: Call, input: Tensor, weight: Tensor) -> Any:
    """PReLU, whose slopes learn only where rounding is allowed."""
    if not is_activation(input) or input.dim() < 2 or not is_unadorned(weight):
        return NotImplemented
    if weight.requires_grad and not call.rounds:
        return NotImplemented
    return _PReLU.apply(input, weight, graph_edge(input), call)
