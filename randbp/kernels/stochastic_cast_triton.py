"""Stochastic rounding to a type of 16 bits by Triton: see :mod:`.stochastic_cast`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import cut, launch, tile
from .noise import BLOCK, signed, start
from .noise_triton import halves, keys


def narrow(values: Tensor, seed: int, first: int, dtype: torch.dtype) -> Tensor:
    """The same bits as the reference's."""
    result = torch.empty(values.shape, dtype=dtype, device=values.device)
    count, (together, columns) = triton.cdiv(values.numel(), BLOCK), tile(BLOCK)
    launch(
        _narrow, triton.cdiv(count, together), values.reshape(-1).view(torch.int32), result.view(torch.int16),
        signed(start(seed)), first, values.numel(), count, HALF=dtype == torch.float16, TOGETHER=together,
        COLUMNS=columns,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=("start", "first", "count"))
def _narrow(
    source, result, start: tl.int64, first: tl.int64, entries, count: tl.int64, HALF: tl.constexpr,
    TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number, _, _, size = cut(count, entries, count, COLUMNS, TOGETHER)
    low, high = keys(start, first + number)
    i = tl.arange(0, COLUMNS)[None, :]
    inside = i < size
    bits = tl.load(source + number * COLUMNS + i, mask=inside, other=0).to(tl.uint32, bitcast=True)
    noise = halves(i, (size + 1) // 2, low, high)
    cut_off = to_float16(bits, noise) if HALF else to_bfloat16(bits, noise)
    tl.store(result + number * COLUMNS + i, cut_off.to(tl.uint16).to(tl.int16, bitcast=True), mask=inside)


@triton.jit
def to_bfloat16(bits, noise):
    """The bits of single precision, rounded by the noise to those of bfloat16."""
    quiet = tl.where((bits & 0x7FFFFF) != 0, 0x40, 0)
    return tl.where((bits & 0x7F800000) == 0x7F800000, (bits >> 16) | quiet, (bits + noise) >> 16)


@triton.jit
def to_float16(bits, noise):
    """The same to those of float16."""
    size = bits & 0x7FFFFFFF
    normal = tl.minimum(((size + (noise >> 3)) >> 13).to(tl.int32) - (112 << 10), 0x7C00)
    dropped = 126 - tl.maximum((size >> 23).to(tl.int32), 1)
    significand = ((size & 0x7FFFFF) | tl.where(size >= 0x800000, 0x800000, 0)).to(tl.int32)
    significand = significand >> tl.minimum(tl.maximum(dropped - 24, 0), 31)
    dropped = tl.minimum(tl.maximum(dropped, 13), 24)
    small = (significand + ((noise << 8).to(tl.int32) >> (24 - dropped))) >> dropped
    value = tl.where(size >= 0x38800000, normal, small)
    value = tl.where(size >= 0x7F800000, tl.where(size > 0x7F800000, 0x7E00, 0x7C00), value)
    return value.to(tl.uint32) | ((bits >> 16) & 0x8000)
