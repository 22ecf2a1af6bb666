"""Dropout: one bit per entry instead of a tensor of factors."""

from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..codecs import Mask
from .comparisons import hold_codes
from .kinks import times_slopes
from .lean_call import Call, is_plain
from .lean_function import Made, run_lean
from .memory_order import flatten, memory_order, unflatten


def dropout(call: Call, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """``F.dropout``: it draws from PyTorch's generator exactly as PyTorch does, and holds one bit per entry."""
    if not training or not 0 < p < 1 or not is_plain(input):  # PyTorch draws nothing for 0 and 1
        return NotImplemented
    make = partial(_fused if input.is_cuda and not inplace else _by_factors, input, p, inplace)
    return run_lean("Dropout", make, input, exact=True, inplace=inplace, linked=[])


def _by_factors(x: Tensor, rate: float, inplace: bool) -> Made:
    factors = torch.empty_like(x).bernoulli_(1 - rate).div_(1 - rate)
    order = memory_order(factors)
    mask = flatten(factors, order) != 0

    def vjp(v: Tensor, wanted: Any, noise: None, bits: Tensor) -> list[Tensor]:
        factor = float(torch.ones((), dtype=v.dtype).div_(1 - rate))
        return [times_slopes(v, bits, order, factor, 0.0)]

    return x.mul_(factors) if inplace else x * factors, (Mask().encode(mask),), vjp


def _fused(x: Tensor, rate: float, inplace: bool) -> Made:
    """PyTorch's on a GPU."""
    y, mask = torch.native_dropout(x, rate, True)
    order = memory_order(mask)

    def vjp(v: Tensor, wanted: Any, noise: None, bits: Tensor) -> list[Tensor]:
        mask = unflatten(Mask().decode(bits, v.numel()), v.shape, order)
        return [torch.ops.aten.native_dropout_backward(v, mask, 1 / (1 - rate))]

    return y, (Mask().encode(flatten(mask, order)),), vjp


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
