"""Stochastic rounding of blocks by numba: see :mod:`.encode`."""

import numpy as np
import torch
from numba import prange, uint32, uint64
from torch import Tensor

from .casts_numba import bits_of, number_of
from .jit import function, parallel, room, tasks
from .levels import Rows, factors, scale_dtype
from .memory_numba import array, kind, load, numpy_dtype
from .noise import start
from .noise_numba import words
from .packing_numba import pack_block
from .words_numba import both, right

_HALF = uint32(0xFFFF)


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


def constants(dtype: torch.dtype, bits: int, dithered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and integers that :func:`encode_block` needs for scales of that dtype."""
    whole, spoilt = factors(bits, dithered)
    several = [whole, np.nan if spoilt is None else spoilt, torch.finfo(dtype).max / 2, 1, 0, 0.5, 2**-16]
    size, integer = (31, np.int32) if dtype == torch.float32 else (63, np.int64)
    return np.array(several, numpy_dtype(dtype)), np.array([size, np.iinfo(integer).max], integer)


@parallel
def _encode(source, kind, codes, scales, start, first, bits, block, numbers, integer, room, words, tasks):
    rows, entries = source.shape
    blocks, padded = scales.shape[1], (block + 7) // 8 * 8
    each = (rows * blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, pairs, levels = room[task, 0], words[task, 0], words[task, 1].view(np.int32)
        for number in range(task * each, min(rows * blocks, (task + 1) * each)):
            row = number // blocks
            place = number - row * blocks
            size = min(block, entries - place * block)
            load(source[row, place * block : place * block + size], kind, x)
            at, length = place * (padded // 8) * bits, (size + 7) // 8 * bits
            packed = codes[row, at : at + length]
            encode_block(
                x[:size], start, first + number, bits, numbers, integer, pairs, levels, scales[row, place], packed
            )


@function
def encode_block(x, start, number, bits, numbers, integer, pairs, levels, scale, packed):
    """Scales and packed codes of the entries of one block.

    ``numbers`` are the factors of the step (:func:`.levels.factors`), half of the largest number, 1, 0, ``1/2`` and
    ``2^-16`` in the precision of ``x``; ``integer`` the bits of an integer of that size less one, and the largest;
    ``pairs`` and ``levels`` room for half as many ``uint32`` and, up to a multiple of eight, as many ``int32``.
    """
    size, half = len(x), (len(x) + 1) // 2
    good = block_scales(x, numbers, integer, scale)
    least, step = scale[0], abs(scale[1])
    inverse = numbers[3] / step if step > numbers[4] else numbers[4]
    words(start, number, pairs[:half])
    top = np.int32((1 << bits) - 1)
    _round_half(x[:half], least, inverse, pairs[:half], uint32(0), numbers, top, levels[:half])
    _round_half(x[half:], least, inverse, pairs[:half], uint32(16), numbers, top, levels[half:size])
    if not good:  # the last level is for entries that are not finite
        for i in range(size):
            finite = abs(x[i]) <= numbers[2]
            levels[i] = np.int32(max(0, min(levels[i], top - 1)) if finite else top)
    for i in range(size, (size + 7) // 8 * 8):
        levels[i] = 0
    pack_block(levels, bits, packed)


@function
def block_scales(x, numbers, integer, scale):
    """Offset and step of a block; whether all entries are finite."""
    most, shift = integer[1], integer[0]
    low, high = most, integer.dtype.type(~most)
    for i in range(len(x)):  # integers in the order of the numbers: minima of these are found many at a time
        bits = bits_of(x[i])
        key = integer.dtype.type(bits ^ (integer.dtype.type(bits >> shift) & most))
        low, high = min(low, key), max(high, key)
    least = number_of(integer.dtype.type(low ^ (integer.dtype.type(low >> shift) & most)))
    largest = number_of(integer.dtype.type(high ^ (integer.dtype.type(high >> shift) & most)))
    limit = numbers[2]
    good = least >= -limit and largest <= limit
    if good:
        step = (largest - least) * numbers[0]
    else:
        least, step = _narrower(x, numbers)
    if np.isinf(numbers[3] / abs(step)):
        step = np.copysign(numbers[4], step)
    scale[0], scale[1] = least + numbers[4], step
    return good


@function
def _narrower(x, numbers):
    """Least finite entry, and the step of a block in which others are not finite."""
    least, largest = numbers[3] / numbers[4], -(numbers[3] / numbers[4])
    for i in range(len(x)):
        if abs(x[i]) <= numbers[2]:
            least, largest = min(least, x[i]), max(largest, x[i])
    if least > largest:
        least = largest = numbers[4]
    if np.isnan(numbers[1]):
        return least, numbers[1]
    return least, -((largest - least) * numbers[1])


@function
def _round_half(x, least, inverse, pairs, shift, numbers, top, levels):
    """Levels of half of a block's entries, from one half of its noise's words."""
    for i in range(len(x)):
        noise = (np.float32(np.int32(both(right(pairs[i], shift), _HALF))) + numbers[5]) * numbers[6]
        level = np.int32((x[i] - least) * inverse + noise)
        levels[i] = level if level < top else top
