"""Masks of one bit per entry by Triton: see :mod:`.mask_bits`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import launch, place_of, rounded, widen
from .levels import scale_dtype
from .mask_bits import BLOCK, mask_bytes


def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """The same bits as the reference's."""
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8, device=values.device)
    write_bits(bits, values, test, low, high)
    return bits


def write_bits(bits: Tensor, values: Tensor, test: str = "true", low: float = 0.0, high: float = 0.0) -> None:
    """Fill ``bits`` with those of where entries pass a test, or of a ``bool`` tensor."""
    if values.dtype == torch.bool:
        source, test, low, high = values.contiguous().view(torch.uint8), "true", 0.0, 0.0
    else:
        source, (low, high) = values.contiguous(), torch.tensor([low, high], dtype=values.dtype).tolist()
    launch(
        _inside, triton.cdiv(len(values), BLOCK), source, bits, len(values), TEST=test, LOW=low, HIGH=high,
        PRECISE=scale_dtype(source.dtype), BLOCK=BLOCK,
    )  # fmt: skip


def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own numbers, whose sign of zero depends on the device, and the reference's bits."""
    return torch.relu(values), inside(values, "not_under", 0.0, 0.0)


def unmask(bits: Tensor, count: int) -> Tensor:
    """The same bits as the reference's."""
    mask = torch.empty(count, dtype=torch.bool, device=bits.device)
    launch(_unmask, triton.cdiv(count, BLOCK), bits.contiguous(), mask.view(torch.uint8), count, BLOCK=BLOCK)
    return mask


def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """The same bits as the reference's."""
    source = values.contiguous()
    result = torch.empty_like(source)
    launch(
        _masked, triton.cdiv(len(values), BLOCK), source, bits.contiguous(), result, len(values), FACTOR=factor,
        OTHER=0.0 if other is None else other, DROPS=other is None, PRECISE=scale_dtype(values.dtype), BLOCK=BLOCK,
    )  # fmt: skip
    return result


@triton.jit
def _inside(
    source, bits, count, TEST: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, length, size = place_of(count, BLOCK)
    j = tl.arange(0, BLOCK // 8)
    packed = tl.zeros((BLOCK // 8,), tl.int32)
    for k in range(0, 8):
        i = k * length + j
        there = (j < length) & (i < size)
        x = widen(tl.load(source + at + i, mask=there, other=0), PRECISE)
        if TEST == "over":
            passes = x > tl.full((), LOW, PRECISE)
        elif TEST == "not_under":
            passes = (x <= tl.full((), LOW, PRECISE)) == 0
        elif TEST == "between":
            passes = (x > tl.full((), LOW, PRECISE)) & (x < tl.full((), HIGH, PRECISE))
        elif TEST == "within":
            passes = (x >= tl.full((), LOW, PRECISE)) & (x <= tl.full((), HIGH, PRECISE))
        else:
            passes = x != 0
        packed |= (passes & there).to(tl.int32) << k
    tl.store(bits + at // 8 + j, packed.to(tl.uint8), mask=j < length)


@triton.jit
def _unmask(bits, mask, count, BLOCK: tl.constexpr):
    at, length, size = place_of(count, BLOCK)
    j = tl.arange(0, BLOCK // 8)
    packed = tl.load(bits + at // 8 + j, mask=j < length, other=0)
    for k in range(0, 8):
        i = k * length + j
        tl.store(mask + at + i, (packed >> k) & 1, mask=(j < length) & (i < size))


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
