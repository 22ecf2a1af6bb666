"""Numbers on equally spaced levels by Triton: see :mod:`.grid_bits`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import cut, launch, rounded, tile, widen
from .decode_triton import unpacked
from .derivatives_triton import derivative
from .grid_bits import room_for, stretched
from .levels import scale_dtype
from .mask_bits_triton import unmask, write_bits
from .noise import BLOCK, signed, start
from .noise_triton import keys
from .packing import packed_size
from .rounding_triton import store_levels


def to_grid(values, function, parameters, seed, first, bits, inverse, zero) -> Tensor:
    """The same bits as the reference's."""
    held, blocks = room_for(values, bits), triton.cdiv(len(values), BLOCK)
    spoilt, (together, columns) = torch.empty(blocks, dtype=torch.bool, device=values.device), tile(BLOCK)
    factor, second, third = parameters
    launch(
        _to_grid, triton.cdiv(blocks, together), values.contiguous(), held, spoilt.view(torch.uint8),
        signed(start(seed)), first, len(values), blocks, FUNCTION=function, FACTOR=factor, SECOND=second, THIRD=third,
        INVERSE=inverse, ZERO=zero, STRETCH=stretched(bits)[0], BITS=bits, TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    write_bits(held[packed_size(len(values), bits) :], spoilt)
    return held


@triton.jit(do_not_specialize=("start", "first", "count"))
def _to_grid(
    source, held, spoilt, start: tl.int64, first: tl.int64, entries, count: tl.int64, FUNCTION: tl.constexpr,
    FACTOR: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, INVERSE: tl.constexpr, ZERO: tl.constexpr,
    STRETCH: tl.constexpr, BITS: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number, _, _, size = cut(count, entries, count, COLUMNS, TOGETHER)
    values = (source + number * COLUMNS, FACTOR, SECOND, THIRD)
    i = tl.arange(0, COLUMNS)[None, :]
    x = _value(i, i < size, values, tl.float32, FUNCTION)
    wrong = tl.max(((i < size) & ((tl.abs(x) < float("inf")) == 0)).to(tl.int32), 1, keep_dims=True)
    tl.store(spoilt + number, wrong.to(tl.uint8), mask=size > 0)
    low, high = keys(start, first + number)
    store_levels(
        held + number * (COLUMNS // 8 * BITS), _value, values, _level, (wrong, INVERSE, ZERO, STRETCH), size,
        COLUMNS, low, high, BITS, tl.float32, FUNCTION, COLUMNS,
    )  # fmt: skip


@triton.jit
def _value(i, inside, values, PRECISE: tl.constexpr, FUNCTION: tl.constexpr):
    at, factor, second, third = values
    x = widen(tl.load(at + i, mask=inside, other=0), PRECISE)
    return x if FUNCTION == "" else derivative(x, FUNCTION, factor, second, third)


@triton.jit
def _level(x, noise, levels, BITS: tl.constexpr):
    wrong, inverse, zero, stretch = levels
    top: tl.constexpr = (1 << BITS) - 1
    below: tl.constexpr = top - 1
    fine = tl.abs(x) < float("inf")
    place = tl.where(fine, x, 0.0) * inverse + zero
    place = tl.where(wrong > 0, place * stretch, place) + noise
    place = tl.where(place > 0, place, 0.0)
    place = tl.minimum(place, tl.where(wrong > 0, below, top).to(tl.float32))
    return tl.where(fine, place.to(tl.int32), top)


def times_grid(values, held, bits, step, zero) -> Tensor:
    """The same bits as the reference's."""
    source, blocks, (together, columns) = values.contiguous(), triton.cdiv(len(values), BLOCK), tile(BLOCK)
    result, held = torch.empty_like(source), held.contiguous()
    spoilt = unmask(held[packed_size(len(values), bits) :], blocks)
    launch(
        _times_grid, triton.cdiv(blocks, together), source, held, spoilt.view(torch.uint8), result, len(values),
        blocks, STEP=step, ZERO=zero, STRETCH=stretched(bits)[1], BITS=bits, PRECISE=scale_dtype(values.dtype),
        TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=("count",))
def _times_grid(
    source, held, spoilt, result, entries, count: tl.int64, STEP: tl.constexpr, ZERO: tl.constexpr,
    STRETCH: tl.constexpr, BITS: tl.constexpr, PRECISE: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number, _, _, size = cut(count, entries, count, COLUMNS, TOGETHER)
    length, narrow = (size + 7) // 8, BITS & -BITS
    marked = tl.load(spoilt + number, mask=size > 0, other=0) != 0
    top: tl.constexpr = (1 << BITS) - 1
    j = tl.arange(0, COLUMNS // 8 * (BITS & -BITS))[None, :]
    for slab in range(0, 8 // (BITS & -BITS)):
        i = slab * narrow * length + j
        inside = (j < narrow * length) & (i < size)
        code = unpacked(held + number * (COLUMNS // 8 * BITS), j, length, inside, slab, BITS)
        level = code.to(tl.float32)
        factor = (tl.where(marked, level * STRETCH, level) - ZERO) * STEP
        factor = tl.where(marked & ((code == top) | (BITS == 1)), float("nan"), factor)
        x = widen(tl.load(source + number * COLUMNS + i, mask=inside, other=0), PRECISE)
        y = rounded(x * factor.to(PRECISE), result.dtype.element_ty)
        tl.store(result + number * COLUMNS + i, y, mask=inside)
