"""Stochastic rounding of blocks by Triton: see :mod:`.encode`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import cut, divided, launch, tile, widen
from .encode import room_for
from .levels import factors
from .noise import BLOCK, signed, start
from .noise_triton import keys
from .rounding_triton import store_levels


def encode(values, seed, first, bits, block, dithered) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    return _encoded(values, seed, first, bits, block, dithered, None)


def encode_normalised(values, mean, rstd, seed, bits) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    normalised = mean.contiguous(), rstd.contiguous(), mean.shape[1], values[:1].numel(), values.shape[3]
    return _encoded(values.reshape(1, -1), seed, 0, bits, BLOCK, True, normalised)


def _encoded(values, seed, first, bits, block, dithered, normalised) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows of numbers, or of what normalisation makes of them.

    That takes mean and reciprocal deviation ``[N or 1, C]``, channels, entries of an example, and positions behind a
    channel.
    """
    codes, scales = room_for(values, bits, block)
    (rows, blocks, _), (together, columns), (whole, spoilt) = scales.shape, tile(block), factors(bits, dithered)
    launch(
        _encode, triton.cdiv(rows * blocks, together), values, codes, scales, signed(start(seed)), first, rows * blocks,
        values.shape[1], blocks, block, codes.shape[1], *values.stride(), *(normalised or (scales, scales, 1, 1, 1)),
        BITS=bits, PRECISE=scales.dtype, WHOLE=whole, SPOILT=spoilt or 0.0, LIMIT=torch.finfo(scales.dtype).max / 2,
        TOGETHER=together, COLUMNS=columns, MEANS=min(2, len(normalised[0])) if normalised else 0,
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
    entry = place * block
    at = source + row * row_step + entry * step_between
    values = (at, step_between, entry, mean, rstd, channels, example, behind)
    least, largest = tl.full((TOGETHER, 1), float("inf"), PRECISE), tl.full((TOGETHER, 1), float("-inf"), PRECISE)
    wrong = tl.zeros((TOGETHER, 1), tl.int32)
    for begin in range(0, block, COLUMNS):
        i = begin + tl.arange(0, COLUMNS)[None, :]
        least, largest, wrong = _spans(
            _value(i, i < size, values, PRECISE, MEANS), i < size, least, largest, wrong, LIMIT
        )
    least, step = _levels_of(least, largest, wrong, BITS, WHOLE, SPOILT)
    tl.store(scales + 2 * number, least, mask=size > 0)
    tl.store(scales + 2 * number + 1, step, mask=size > 0)
    inverse, top = _scaling(step, wrong, BITS)
    low, high = keys(start, first + number)
    store_levels(
        codes + row * row_bytes + place * ((block + 7) // 8 * BITS), _value, values, _level,
        (least, inverse, top, LIMIT), size, block, low, high, BITS, PRECISE, MEANS, COLUMNS,
    )  # fmt: skip


@triton.jit
def _value(i, inside, values, PRECISE: tl.constexpr, MEANS: tl.constexpr):
    """Entries ``i`` of blocks that begin at ``entry``, normalised if there are means: of all examples or of each."""
    at, step_between, entry, mean, rstd, channels, example, behind = values
    x = widen(tl.load(at + i.to(tl.int64) * step_between, mask=inside, other=0), PRECISE)
    if MEANS > 0:
        which = channel_of(entry, i, channels, behind)
        if MEANS > 1:
            which += example_of(entry, i, example) * channels
        x = (x - tl.load(mean + which, mask=inside, other=0)) * tl.load(rstd + which, mask=inside, other=0)
    return x


@triton.jit
def _level(x, noise, levels, BITS: tl.constexpr):
    least, inverse, top, LIMIT = levels
    fine = tl.abs(x) <= LIMIT
    level = ((tl.where(fine, x, least) - least) * inverse + noise).to(tl.int32)
    return tl.where(fine, tl.minimum(level, top), (1 << BITS) - 1)


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
def _spans(x, inside, least, largest, wrong, LIMIT: tl.constexpr):
    """The ends of what levels stand for in blocks, and whether something else is there, with these entries, too."""
    fine = tl.abs(x) <= LIMIT
    least = tl.minimum(least, tl.min(tl.where(inside & fine, x, float("inf")), 1, keep_dims=True))
    largest = tl.maximum(largest, tl.max(tl.where(inside & fine, x, float("-inf")), 1, keep_dims=True))
    return least, largest, tl.maximum(wrong, tl.max((inside & (fine == 0)).to(tl.int32), 1, keep_dims=True))


@triton.jit
def _levels_of(least, largest, wrong, BITS: tl.constexpr, WHOLE: tl.constexpr, SPOILT: tl.constexpr):
    """Offset and step of blocks."""
    least, span = tl.where(least <= largest, least, 0) + 0.0, tl.where(least <= largest, largest - least, 0) + 0.0
    if BITS == 1:
        step = tl.where(wrong > 0, float("nan"), span * WHOLE)
    else:
        step = tl.where(wrong > 0, -(span * SPOILT), span * WHOLE)
    too_small = divided(tl.zeros_like(step) + 1.0, tl.abs(step)) == float("inf")
    return least, tl.where(too_small, tl.where((wrong > 0) & (BITS > 1), -tl.zeros_like(step), 0.0), step)


@triton.jit
def _scaling(step, wrong, BITS: tl.constexpr):
    """Reciprocals of the steps of blocks, and their last levels."""
    size = tl.abs(step)
    inverse = tl.where(size > 0, divided(tl.zeros_like(size) + 1.0, size), 0)
    return inverse, tl.where((wrong > 0) & (BITS > 1), (1 << BITS) - 2, (1 << BITS) - 1)
