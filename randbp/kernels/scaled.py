"""A scale and a shift for each channel, rounded once, and optionally ReLU."""

import torch
from torch import Tensor

from .mask_bits import pieces
from .operator import fused


@fused(lambda values, *_: torch.empty_like(values))
def scaled(values: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """Compute ``a_c x + b_c`` by fused multiply-adds, which round only the sum, as PyTorch normalises on processors.

    Args:
        values: ``x``, single precision ``[R, C, S]``.
        scale: ``a``, ``[C]``.
        shift: ``b``, ``[C]``.
        relu: Whether ReLU follows.

    Example:
        >>> scaled(torch.tensor([[[1.0, -1.0]]]), torch.tensor([2.0]), torch.tensor([1.0]), True)
        tensor([[[3., 0.]]])
    """
    rows, channels, size = values.shape
    result = torch.empty(values.shape, device=values.device)
    flat, each = result.view(rows * channels, size), values.reshape(rows * channels, size)
    a, b = (number.repeat(rows).unsqueeze(1) for number in (scale, shift))
    for part in pieces(rows * channels * size, values.device) if size else []:
        some = slice(part.start // size, -(-part.stop // size))
        y = multiply_add(each[some], a[some], b[some])
        flat[some] = torch.relu(y) if relu else y
    return result


def multiply_add(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``x a + b`` of single precision, rounded once.

    The product is exact in double precision. The sum is rounded to odd there (where it is not exact, to the neighbour
    whose last bit is set), so that rounding it again gives what rounding once would.

    Source: S. Boldo and G. Melquiond, Emulation of FMA and correctly rounded sums, IEEE Transactions on Computers 57
    (2008).

    Example:
        >>> x = torch.tensor([1 + 2**-12])
        >>> bool(multiply_add(x, x, -torch.ones(1)) == 2**-11 + 2**-24), bool(x * x - 1 == 2**-11)
        (True, True)
    """
    product, other = x.double() * a.double(), b.double()
    total = product + other
    part = total - product
    rest = (product - (total - part)) + (other - part)
    even = total.view(torch.int64).bitwise_and(1) == 0
    inexact = even & ((rest > 0) | (rest < 0))
    towards = torch.full_like(total, torch.inf).copysign_(rest)
    return torch.where(inexact, torch.nextafter(total, towards), total).float()
