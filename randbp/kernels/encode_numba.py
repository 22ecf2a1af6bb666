"""Stochastic rounding of blocks by numba: see :mod:`.encode`."""

from functools import cache

import numpy as np
import torch
from numba import int32, prange, uint8, uint64
from torch import Tensor

from .casts_numba import bits_of, number_of
from .jit import function, parallel, room, tasks
from .levels import Rows, factors, scale_dtype
from .memory_numba import array, kind, loaded, numpy_dtype
from .noise import start
from .noise_numba import high_uniform, keys, low_uniform, word
from .packing_numba import pack_bytes
from .pointers_numba import as_bytes, at, part_of
from .words_numba import both, differ, either, left, right_signed

_FOUR = uint8(4)


def encode(values: Tensor, seed: int, first: int, bits: int, block: int, dithered: bool) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    rows, dtype = Rows(values.shape[1], block, bits), scale_dtype(values.dtype)
    codes = torch.empty(len(values), rows.nbytes, dtype=torch.uint8)
    scales = torch.empty(len(values), rows.blocks, 2, dtype=dtype)
    if values.numel():
        parts = tasks(values.numel())
        _encode(
            array(values.contiguous()), kind(values.dtype), array(codes), array(scales), uint64(start(seed)),
            first, bits, block, *constants(dtype, bits, dithered), *room(parts, block, numpy_dtype(dtype)), parts,
        )  # fmt: skip
    return codes, scales


@cache
def constants(dtype: torch.dtype, bits: int, dithered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and integers that :func:`encode_block` needs for scales of that dtype; they are not to be changed."""
    whole, spoilt = factors(bits, dithered)
    several = [whole, np.nan if spoilt is None else spoilt, torch.finfo(dtype).max / 2, 1, 0]
    shift, integer = (31, np.int32) if dtype == torch.float32 else (63, np.int64)
    integers = [shift, np.iinfo(integer).max, np.iinfo(integer).min]
    return np.array(several, numpy_dtype(dtype)), np.array(integers, integer)


@parallel
def _encode(source, kind, codes, scales, start, first, bits, block, numbers, integers, room, words, tasks):
    rows, entries = source.shape
    blocks, nbytes = scales.shape[1], codes.shape[1]
    each = (rows * blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, levels = part_of(room, task), as_bytes(part_of(words, task))
        for number in range(task * each, min(rows * blocks, (task + 1) * each)):
            row = number // blocks
            place = number - row * blocks
            size = min(block, entries - place * block)
            encode_block(
                loaded(at(source, row * entries + place * block), size, kind, x), size, start, first + number,
                bits, at(numbers, 0), at(integers, 0), levels, at(scales, 2 * number),
                at(codes, row * nbytes + place * ((block + 7) // 8 * bits)),
            )  # fmt: skip


@function
def encode_block(x, size, start, number, bits, numbers, integers, levels, scale, packed):
    """Scales and packed codes of the entries of one block.

    ``numbers`` and ``integers`` are the :func:`constants`; ``levels`` room for as many bytes as there are entries, up
    to a multiple of eight.
    """
    good = block_scales(x, size, numbers, integers, scale)
    least, step = scale[0], abs(scale[1])
    inverse = numbers[3] / step if step > numbers[4] else numbers[4]
    low, high = keys(start, number)
    top, half = int32((1 << bits) - 1), uint64((size + 1) // 2)
    if good and bits == 4 and size % 8 == 0:
        _round_to_halves(x, least, inverse, low, high, top, half, packed)
        return
    if good:
        _round(x, least, inverse, low, high, top, half, uint64(size) - half, levels)
    else:
        _round_finite(x, size, least, inverse, low, high, numbers[2], top, half, levels)
    for i in range(size, (size + 7) // 8 * 8):
        levels[i] = 0
    pack_bytes(levels, (size + 7) // 8, bits, packed)


@function
def block_scales(x, size, numbers, integers, scale):
    """Offset and step of a block; whether all entries are finite."""
    shift, most = integers[0], integers[1]
    low, high = most, integers[2]
    for i in range(size):  # integers in the order of the numbers: minima of these are found many at a time
        bits = bits_of(x[i])
        key = differ(bits, both(right_signed(bits, shift), most))
        low, high = min(low, key), max(high, key)
    least = number_of(differ(low, both(right_signed(low, shift), most)))
    largest = number_of(differ(high, both(right_signed(high, shift), most)))
    limit = numbers[2]
    good = least >= -limit and largest <= limit
    if good:
        step = (largest - least) * numbers[0]
    else:
        least, step = _narrower(x, size, numbers)
    if np.isinf(numbers[3] / abs(step)):
        step = np.copysign(numbers[4], step)
    scale[0], scale[1] = least + numbers[4], step
    return good


@function
def _narrower(x, size, numbers):
    """Least finite entry, and the step of a block in which others are not finite."""
    least, largest = numbers[3] / numbers[4], -(numbers[3] / numbers[4])
    for i in range(size):
        if abs(x[i]) <= numbers[2]:
            least, largest = min(least, x[i]), max(largest, x[i])
    if least > largest:
        least = largest = numbers[4]
    if np.isnan(numbers[1]):
        return least, numbers[1]
    return least, -((largest - least) * numbers[1])


@function
def _level(x, least, inverse, noise, top):
    level = int32((x - least) * inverse + noise)
    return uint8(level if level < top else top)


@function
def _round_to_halves(x, least, inverse, low, high, top, half, packed):
    """Levels of four bits, packed: the two that share a word share a byte."""
    for i in range(half):
        each = word(i, low, high)
        first = _level(x[i], least, inverse, low_uniform(each), top)
        second = _level(x[half + i], least, inverse, high_uniform(each), top)
        packed[i] = either(first, left(second, _FOUR))


@function
def _round(x, least, inverse, low, high, top, half, rest, levels):
    """Levels of a block's entries; two of them share a word."""
    for i in range(rest):
        each = word(i, low, high)
        levels[i] = _level(x[i], least, inverse, low_uniform(each), top)
        levels[half + i] = _level(x[half + i], least, inverse, high_uniform(each), top)
    for i in range(rest, half):
        levels[i] = _level(x[i], least, inverse, low_uniform(word(i, low, high)), top)


@function
def _round_finite(x, size, least, inverse, low, high, limit, top, half, levels):
    """The same where the last level is for entries that are not finite."""
    for i in range(uint64(size)):
        each = word(i if i < half else i - half, low, high)
        noise = low_uniform(each) if i < half else high_uniform(each)
        level = int32((x[i] - least) * inverse + noise)
        levels[i] = uint8(max(0, min(level, top - 1)) if abs(x[i]) <= limit else top)
