"""Blocks of entries on equally spaced levels, for numba's kernels: see :mod:`.grid_bits`."""

import numpy as np
from numba import int32, uint8, uint64

from .jit import function
from .noise_numba import high_uniform, keys, low_uniform, word
from .packing_numba import pack_bytes, unpack_bytes
from .pointers_numba import as_signed
from .words_numba import both, either, left

_EXPONENT, _FOUR = int32(0x7F800000), uint8(4)


def numbers(bits: int, factor: float, zero: float, stretch: float) -> np.ndarray:
    """What rounding to levels and back needs, in single precision."""
    return np.array([factor, zero, stretch, 2**bits - 1, 0.5, 2**-16, 0, 1], np.float32)


@function
def encode_block(x, size, bits, start, number, numbers_, levels, out):
    """Codes of the entries of one block, given by pointers; whether it is spoilt.

    ``levels`` is room for as many bytes as there are entries, up to a multiple of eight.
    """
    wrong, integers = int32(0), as_signed(x)
    for i in range(size):
        wrong |= int32(both(integers[i], _EXPONENT) == _EXPONENT)
    low, high = keys(start, number)
    factor, zero, stretch, top, least = numbers_[0], numbers_[1], numbers_[2], numbers_[3], numbers_[6]
    half = uint64((size + 1) // 2)
    if not wrong and bits == 4 and size % 8 == 0:
        for i in range(half):
            each = word(i, low, high)
            first = _level(x[i] * factor + zero, low_uniform(each), least, top)
            second = _level(x[half + i] * factor + zero, high_uniform(each), least, top)
            out[i] = either(first, left(second, _FOUR))
        return False
    if wrong:
        last = top - numbers_[7]
        for i in range(uint64(size)):
            each = word(i if i < half else i - half, low, high)
            noise = low_uniform(each) if i < half else high_uniform(each)
            level = _level((x[i] * factor + zero) * stretch, noise, least, last)
            levels[i] = uint8(int32(top)) if both(integers[i], _EXPONENT) == _EXPONENT else level
    else:
        _round(x, low, high, half, uint64(size) - half, factor, zero, least, top, levels)
    for i in range(size, (size + 7) // 8 * 8):
        levels[i] = 0
    pack_bytes(levels, (size + 7) // 8, bits, out)
    return wrong != 0


@function
def _level(place, noise, least, top):
    level = place + noise
    level = level if level > least else least
    return uint8(int32(level if level < top else top))


@function
def _round(x, low, high, half, rest, factor, zero, least, top, levels):
    for i in range(rest):
        each = word(i, low, high)
        levels[i] = _level(x[i] * factor + zero, low_uniform(each), least, top)
        levels[half + i] = _level(x[half + i] * factor + zero, high_uniform(each), least, top)
    for i in range(rest, half):
        levels[i] = _level(x[i] * factor + zero, low_uniform(word(i, low, high)), least, top)


@function
def decode_block(packed, size, bits, spoilt, numbers_, levels, out):
    """The entries of one block; what is not a number is a pointer, ``levels`` as in :func:`encode_block`."""
    unpack_bytes(packed, (size + 7) // 8, bits, levels)
    step, zero = numbers_[0], numbers_[1]
    if spoilt:
        for i in range(size):
            out[i] = (np.float32(levels[i]) * numbers_[2] - zero) * step
            if levels[i] == np.int32(numbers_[3]) or bits == 1:
                out[i] = np.nan
    else:
        for i in range(size):
            out[i] = (np.float32(levels[i]) - zero) * step
