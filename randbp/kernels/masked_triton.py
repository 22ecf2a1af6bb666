"""Entries times one of two numbers, by Triton: see :mod:`.masked`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import PRECISION, launch, rounded, widen
from .inside_triton import place_of
from .levels import scale_dtype
from .mask_bits import BLOCK


def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """The same bits as the reference's."""
    source = values.contiguous()
    result = torch.empty_like(source)
    launch(
        _masked, triton.cdiv(len(values), BLOCK), values, source, bits.contiguous(), result, len(values), FACTOR=factor,
        OTHER=0.0 if other is None else other, DROPS=other is None, PRECISE=PRECISION[scale_dtype(values.dtype)],
        BLOCK=BLOCK,
    )  # fmt: skip
    return result


@triton.jit
def _masked(
    source, bits, result, count, FACTOR: tl.constexpr, OTHER: tl.constexpr, DROPS: tl.constexpr,
    PRECISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, length, size = place_of(count, BLOCK)
    j = tl.arange(0, BLOCK // 8)
    packed = tl.load(bits + at // 8 + j, mask=j < length, other=0)
    factor, other = tl.full((), FACTOR, PRECISE), tl.full((), OTHER, PRECISE)
    for k in range(0, 8):
        i = k * length + j
        there = (j < length) & (i < size)
        x = widen(tl.load(source + at + i, mask=there, other=0), PRECISE)
        chosen = ((packed >> k) & 1) != 0
        y = tl.where(chosen, x * factor, other if DROPS else x * other)
        tl.store(result + at + i, rounded(y, result.dtype.element_ty), mask=there)
