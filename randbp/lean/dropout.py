"""Dropout: one bit per entry instead of a tensor of factors."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..codecs import Mask
from .comparisons import hold_codes
from .kinks import times_slopes
from .lean_call import Call, is_plain
from .memory_order import flatten, memory_order, unflatten


class _Dropout(torch.autograd.Function):
    """Draws from PyTorch's generator exactly as PyTorch's dropout does, and holds one bit per entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, inplace: bool) -> Tensor:
        ctx.fused = x.is_cuda and not inplace
        if ctx.fused:
            y, mask = torch.native_dropout(x, rate, True)
            ctx.order = memory_order(mask)
            mask = flatten(mask, ctx.order)
        else:
            factors = _factors(torch.empty_like(x).bernoulli_(1 - rate), rate)
            ctx.order = memory_order(factors)
            mask = flatten(factors, ctx.order) != 0
            y = x.mul_(factors) if inplace else x * factors
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(Mask().encode(mask))
        ctx.rate = rate
        return y

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = output_grads
        (bits,) = ctx.saved_tensors
        if not ctx.fused:
            factor = float(_factors(torch.ones((), dtype=grad.dtype), ctx.rate))
            return times_slopes(grad, bits, ctx.order, factor, 0.0), None, None
        mask = unflatten(Mask().decode(bits, grad.numel()), grad.shape, ctx.order)
        return torch.ops.aten.native_dropout_backward(grad, mask, 1 / (1 - ctx.rate)), None, None


def _factors(kept: Tensor, rate: float) -> Tensor:
    return kept.div_(1 - rate)


def dropout(call: Call, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """``F.dropout``."""
    if not training or not 0 < p < 1 or not is_plain(input):  # PyTorch draws nothing for 0 and 1
        return NotImplemented
    return _Dropout.apply(input, p, inplace)


def torch_dropout(call: Call, input: Tensor, p: float, train: bool) -> Any:
    """``torch.dropout`` and ``torch.dropout_``."""
    return dropout(call, input, p, train, call.overwrites)


_LEAST = 1.7580993408473766  # minus SELU's lower limit, to all the digits that PyTorch writes


def alpha_dropout(call: Call, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    """``alpha_dropout``, whose factors are 0 and one other number."""
    if not training or not 0 < p < 1:
        return NotImplemented
    factor = 1 / sqrt((_LEAST**2 * p + 1) * (1 - p))
    return hold_codes(lambda tensor: (tensor != 0).view(torch.uint8), (0.0, factor), call, input)
