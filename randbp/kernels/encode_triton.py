"""Stochastic rounding of blocks by Triton: see :mod:`.encode`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import PRECISION, divided, launch, widen
from .levels import Rows, factors, scale_dtype
from .noise import signed, start
from .noise_triton import keys, uniforms

TILE = 512
"""Entries that a program handles at once, of one block or of several [entries]."""


def tile(block: int) -> tuple[int, int]:
    """Blocks, and entries of each, that a program handles at once: powers of two.

    Example:
        >>> tile(256), tile(49), tile(50176)
        ((2, 256), (8, 64), (1, 512))
    """
    columns = min(TILE, triton.next_power_of_2(max(1, block)))
    return TILE // columns, columns


def encode(values: Tensor, seed: int, first: int, bits: int, block: int, dithered: bool) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    return encoded(values, seed, first, bits, block, dithered, None)


Normalised = tuple[Tensor, Tensor, int, int]
"""Mean and reciprocal deviation ``[N or 1, C]``, entries of an example, and positions behind a channel."""


def encoded(
    values: Tensor, seed: int, first: int, bits: int, block: int, dithered: bool, normalised: Normalised | None
) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows of numbers, or of what normalisation makes of them."""
    rows, dtype = Rows(values.shape[1], block, bits), scale_dtype(values.dtype)
    codes = torch.empty(len(values), rows.nbytes, dtype=torch.uint8, device=values.device)
    scales = torch.empty(len(values), rows.blocks, 2, dtype=dtype, device=values.device)
    count, (together, columns), (whole, spoilt) = len(values) * rows.blocks, tile(block), factors(bits, dithered)
    mean, rstd, example, behind = normalised or (scales, scales, 1, 1)
    launch(
        _encode, triton.cdiv(count, together), values, values, codes, scales, signed(start(seed)), first, count,
        values.shape[1], rows.blocks, block, rows.nbytes, *values.stride(), mean, rstd, mean.shape[1], example, behind,
        BITS=bits, PRECISE=PRECISION[dtype],
        WHOLE=whole, SPOILT=spoilt or 0.0, LIMIT=torch.finfo(dtype).max / 2, TOGETHER=together, COLUMNS=columns,
        MEANS=min(2, len(mean)) if normalised else 0,
    )  # fmt: skip
    return codes, scales


@triton.jit(do_not_specialize=("start", "first", "count"))
def _encode(
    source, codes, scales, start: tl.int64, first: tl.int64, count: tl.int64, entries, blocks, block, row_bytes,
    row_step, step_between, mean, rstd, channels, example, behind, BITS: tl.constexpr, PRECISE: tl.constexpr,
    WHOLE: tl.constexpr, SPOILT: tl.constexpr, LIMIT: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
    MEANS: tl.constexpr,
):  # fmt: skip
    number, row, place, size = cut(count, entries, blocks, block, TOGETHER)
    at, entry = source + row * row_step + place * block * step_between, place * block
    least, largest = tl.full((TOGETHER, 1), float("inf"), PRECISE), tl.full((TOGETHER, 1), float("-inf"), PRECISE)
    wrong = tl.zeros((TOGETHER, 1), tl.int32)
    for begin in range(0, block, COLUMNS):
        i = begin + tl.arange(0, COLUMNS)[None, :]
        x = _values(at, i, i < size, step_between, entry, mean, rstd, channels, example, behind, PRECISE, MEANS)
        least, largest, wrong = spans(x, i < size, least, largest, wrong, LIMIT)
    least, step = levels_of(least, largest, wrong, BITS, WHOLE, SPOILT)
    tl.store(scales + 2 * number, least, mask=size > 0)
    tl.store(scales + 2 * number + 1, step, mask=size > 0)
    inverse, top = scaling(step, wrong, BITS)
    low, high = keys(start, first + number)
    out = codes + row * row_bytes + place * ((block + 7) // 8 * BITS)
    for power in tl.static_range(3, -1, -1):
        if (BITS >> power) & 1:
            for begin in range(0, (block + 7) // 8 << power, COLUMNS):
                _plane(
                    at, step_between, out, begin, size, least, inverse, top, low, high, entry, mean, rstd, channels,
                    example, behind, power, BITS, LIMIT, PRECISE, COLUMNS, MEANS,
                )  # fmt: skip


@triton.jit
def _plane(
    at, step_between, out, begin, size, least, inverse, top, low, high, entry, mean, rstd, channels, example, behind,
    POWER: tl.constexpr, BITS: tl.constexpr, LIMIT: tl.constexpr, PRECISE: tl.constexpr, COLUMNS: tl.constexpr,
    MEANS: tl.constexpr,
):  # fmt: skip
    """Some bytes of the plane of blocks that packs ``2^POWER`` bits of each code: see :func:`.packing.pack`."""
    wider: tl.constexpr = (BITS >> (POWER + 1)) << (POWER + 1)
    j = begin + tl.arange(0, COLUMNS)[None, :]
    length, half = (size + 7) // 8, (size + 1) // 2
    here = j < (length << POWER)
    plane = (here & False).to(tl.int32)
    for slab in range(0, 8 >> POWER):
        i = slab * (length << POWER) + j
        inside = here & (i < size)
        x = _values(at, i, inside, step_between, entry, mean, rstd, channels, example, behind, PRECISE, MEANS)
        code = integers(x, uniforms(i, half, low, high, PRECISE), least, inverse, top, BITS, LIMIT)
        part = (code >> wider) & ((1 << (1 << POWER)) - 1)
        plane |= tl.where(inside, part << (slab << POWER), 0)
    tl.store(out + wider * length + j, plane.to(tl.uint8), mask=here)


@triton.jit
def _values(
    at, i, inside, step_between, entry, mean, rstd, channels, example, behind, PRECISE: tl.constexpr,
    MEANS: tl.constexpr,
):  # fmt: skip
    """Entries ``i`` of blocks that begin at ``entry``, normalised if there are means: of all examples or of each."""
    x = widen(tl.load(at + i.to(tl.int64) * step_between, mask=inside, other=0), PRECISE)
    if MEANS > 0:
        which = channel_of(entry, i, channels, behind)
        if MEANS > 1:
            which += example_of(entry, i, example) * channels
        x = (x - tl.load(mean + which, mask=inside, other=0)) * tl.load(rstd + which, mask=inside, other=0)
    return x


@triton.jit
def channel_of(entry, i, channels, behind):
    """Channels of entries ``entry + i`` of a tensor with so many positions behind each channel."""
    plane = entry // behind
    further = ((entry - plane * behind).to(tl.int32) + i) // behind
    return ((plane % channels).to(tl.int32) + further) % channels


@triton.jit
def example_of(entry, i, example):
    """Numbers of the examples, of so many entries each, that entries ``entry + i`` belong to."""
    number = entry // example
    return (number.to(tl.int32)) + ((entry - number * example).to(tl.int32) + i) // example


@triton.jit
def cut(count, entries, blocks, block, TOGETHER: tl.constexpr):
    """Number, row, place in the row (``int64``) and entries (``int32``) of a program's blocks, ``[TOGETHER, 1]``."""
    first = tl.program_id(0).to(tl.int64) * TOGETHER
    row = first // blocks
    place = (first - row * blocks).to(tl.int32) + tl.arange(0, TOGETHER)[:, None]
    further = place // blocks
    place = (place - further * blocks).to(tl.int64)
    number = first + tl.arange(0, TOGETHER)[:, None]
    size = tl.minimum(entries - place * block, block).to(tl.int32)
    return number, row + further, place, tl.where(number < count, size, 0)


@triton.jit
def spans(x, inside, least, largest, wrong, LIMIT: tl.constexpr):
    """The ends of what levels stand for in blocks, and whether something else is there, with these entries, too."""
    fine = tl.abs(x) <= LIMIT
    least = tl.minimum(least, tl.min(tl.where(inside & fine, x, float("inf")), 1, keep_dims=True))
    largest = tl.maximum(largest, tl.max(tl.where(inside & fine, x, float("-inf")), 1, keep_dims=True))
    return least, largest, tl.maximum(wrong, tl.max((inside & (fine == 0)).to(tl.int32), 1, keep_dims=True))


@triton.jit
def levels_of(least, largest, wrong, BITS: tl.constexpr, WHOLE: tl.constexpr, SPOILT: tl.constexpr):
    """Offset and step of blocks."""
    least, span = tl.where(least <= largest, least, 0) + 0.0, tl.where(least <= largest, largest - least, 0) + 0.0
    if BITS == 1:
        step = tl.where(wrong > 0, float("nan"), span * WHOLE)
    else:
        step = tl.where(wrong > 0, -(span * SPOILT), span * WHOLE)
    too_small = divided(tl.zeros_like(step) + 1.0, tl.abs(step)) == float("inf")
    return least, tl.where(too_small, tl.where((wrong > 0) & (BITS > 1), -tl.zeros_like(step), 0.0), step)


@triton.jit
def scaling(step, wrong, BITS: tl.constexpr):
    """Reciprocals of the steps of blocks, and their last levels."""
    size = tl.abs(step)
    inverse = tl.where(size > 0, divided(tl.zeros_like(size) + 1.0, size), 0)
    return inverse, tl.where((wrong > 0) & (BITS > 1), (1 << BITS) - 2, (1 << BITS) - 1)


@triton.jit
def integers(x, noise, least, inverse, top, BITS: tl.constexpr, LIMIT: tl.constexpr):
    """Codes of entries of blocks, ``int32``."""
    fine = tl.abs(x) <= LIMIT
    level = ((tl.where(fine, x, least) - least) * inverse + noise).to(tl.int32)
    return tl.where(fine, tl.minimum(level, top), (1 << BITS) - 1)
