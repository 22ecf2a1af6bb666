"""Entries from integers of a few bits by Triton: see :mod:`.decode`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import cut, launch, rounded, tile
from .noise import signed, start
from .noise_triton import keys, uniforms


def decode(codes, scales, seed, first, bits, block, entries, dithered, dtype) -> Tensor:
    """The same bits as the reference's."""
    result = torch.empty(len(codes), entries, dtype=dtype, device=codes.device)
    (rows, blocks, _), (together, columns) = scales.shape, tile(block)
    launch(
        _decode, triton.cdiv(rows * blocks, together), codes.contiguous(), scales.contiguous(), result,
        signed(start(seed)), first, rows * blocks, entries, blocks, block, codes.shape[1], BITS=bits,
        DITHERED=dithered, PRECISE=scales.dtype, TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=("start", "first", "count"))
def _decode(
    codes, scales, result, start: tl.int64, first: tl.int64, count: tl.int64, entries, blocks, block, row_bytes,
    BITS: tl.constexpr, DITHERED: tl.constexpr, PRECISE: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number, row, place, size = cut(count, entries, blocks, block, TOGETHER)
    packed = codes + row * row_bytes + place * ((block + 7) // 8 * BITS)
    least = tl.load(scales + 2 * number, mask=size > 0, other=0)
    step = tl.load(scales + 2 * number + 1, mask=size > 0, other=0)
    low, high = keys(start, first + number)
    length, half = (size + 7) // 8, (size + 1) // 2
    out = result + row * entries + place * block
    narrow: tl.constexpr = BITS & -BITS  # width of the narrowest plane: its codes lie in 8 / narrow slabs of a block
    for begin in range(0, (block + 7) // 8 * narrow, COLUMNS):
        j = begin + tl.arange(0, COLUMNS)[None, :]
        for slab in range(0, 8 // narrow):
            i = slab * narrow * length + j
            inside = (j < narrow * length) & (i < size)
            code = unpacked(packed, j, length, inside, slab, BITS)
            if DITHERED:
                value = entry(code, uniforms(i, half, low, high, PRECISE), least, step, BITS)
            else:
                value = entry(code, tl.full((1, 1), 0.5, PRECISE), least, step, BITS)
            tl.store(out + i, rounded(value, result.dtype.element_ty), mask=inside)


@triton.jit
def unpacked(packed, j, length, inside, slab, BITS: tl.constexpr):
    """Codes ``j`` of a slab of blocks, ``int32``; slabs are as long as the narrowest plane (:func:`.packing.pack`)."""
    code = (inside & False).to(tl.int32)
    for power in tl.static_range(3, -1, -1):
        if (BITS >> power) & 1:
            code |= _part(packed, j, length, inside, slab, BITS, power)
    return code


@triton.jit
def _part(packed, j, length, inside, slab, BITS: tl.constexpr, POWER: tl.constexpr):
    """The bits of codes that one plane holds."""
    wider: tl.constexpr = (BITS >> (POWER + 1)) << (POWER + 1)
    narrow: tl.constexpr = BITS & -BITS
    each: tl.constexpr = (1 << POWER) // narrow  # slabs that lie behind each other in this plane
    plane = tl.load(packed + (wider + slab % each * narrow) * length + j, mask=inside, other=0).to(tl.int32)
    return ((plane >> (slab // each << POWER)) & ((1 << (1 << POWER)) - 1)) << wider


@triton.jit
def entry(code, noise, least, step, BITS: tl.constexpr):
    """What codes of blocks stand for."""
    value = (code.to(least.dtype) - (noise - 0.5)) * tl.abs(step) + least
    spoilt = signbit(step)
    return tl.where(spoilt & (code == (1 << BITS) - 1), float("nan"), value)


@triton.jit
def signbit(x):
    """Whether the sign of numbers is negative, also that of zeros."""
    return (x.to(tl.int64, bitcast=True) if x.dtype == tl.float64 else x.to(tl.int32, bitcast=True)) < 0


@triton.jit
def entries_at(codes, scales, start, at, count, inside, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Dithered entries, at any places ``int64`` among ``count`` ones that were encoded in blocks from number 0 on."""
    block = at // BLOCK
    i = (at - block * BLOCK).to(tl.int32)
    size = tl.minimum(count - block * BLOCK, BLOCK).to(tl.int32)
    length, narrow = (size + 7) // 8, BITS & -BITS
    slab = i // (narrow * length)
    code = unpacked(codes + block * (BLOCK // 8 * BITS), i - slab * narrow * length, length, inside, slab, BITS)
    least = tl.load(scales + 2 * block, mask=inside, other=0)
    step = tl.load(scales + 2 * block + 1, mask=inside, other=0)
    low, high = keys(start, block)
    return entry(code, uniforms(i, (size + 1) // 2, low, high, least.dtype), least, step, BITS)
