"""Entries times one of two numbers, which a bit per entry chooses."""

import torch
from torch import Tensor

from .mask_bits import bytes_of, mask_of, pieces
from .operator import fused


def _fake(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    return torch.empty_like(values)


@fused(_fake)
def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """``factor x`` where an entry's bit is set; elsewhere ``other x``, or 0 whatever ``x`` is if that is ``None``.

    As PyTorch's gradients of piecewise linear functions, entries are multiplied in single precision if theirs is half.

    Args:
        values: ``[n]``, of any floating dtype.
        bits: ``uint8 [⌈n / 8⌉]``: see :mod:`.mask_bits`.
        factor: Where the bit is set; one of the two is 1 or 0 if both are given.
        other: Where it is not.

    Example:
        >>> masked(torch.ones(3), torch.tensor([5], dtype=torch.uint8), 1.0, 0.5)
        tensor([1.0000, 0.5000, 1.0000])
    """
    result = torch.empty_like(values)
    for part in pieces(len(values), values.device):
        result[part] = chosen(values[part], mask_of(bits[bytes_of(part)], part.stop - part.start), factor, other)
    return result


def chosen(x: Tensor, mask: Tensor, factor: float, other: float | None) -> Tensor:
    """The same of a ``bool`` mask, by differentiable operations; ``torch.where`` is many times slower."""
    kept = mask.to(x.dtype)
    if other == 0:  # an entry keeps its sign, and need not be finite
        return x * (kept if factor == 1 else kept * factor)
    if other is not None:
        return torch.ops.aten.leaky_relu_backward(x, kept, other, False)
    return torch.ops.aten.threshold_backward(x if factor == 1 else x * factor, kept, 0)
