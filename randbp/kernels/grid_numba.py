"""Blocks of entries on equally spaced levels, for numba's kernels: see :mod:`.grid_bits`."""

import numpy as np
from numba import uint32

from .jit import function
from .noise_numba import words
from .packing_numba import pack_block, unpack_block

_EXPONENT = np.int32(0x7F800000)


def numbers(bits: int, factor: float, zero: float, stretch: float) -> np.ndarray:
    """What rounding to levels and back needs, in single precision."""
    return np.array([factor, zero, stretch, 2**bits - 1, 0.5, 2**-16, 0, 1], np.float32)


@function
def encode_block(x, bits, start, number, numbers_, pairs, levels, out):
    """Codes of the entries of one block; whether it is spoilt.

    ``pairs`` and ``levels`` are room for half as many ``uint32`` and as many ``int32``, up to a multiple of eight.
    """
    integers, wrong = x.view(np.int32), np.int32(0)
    for i in range(len(x)):
        wrong |= np.int32((integers[i] & _EXPONENT) == _EXPONENT)
    size = len(x)
    half = (size + 1) // 2
    words(start, number, pairs[:half])
    if wrong:
        _stretch(x, numbers_)
        _round(x[:half], pairs[:half], uint32(0), numbers_, numbers_[3] - numbers_[7], levels[:half])
        _round(x[half:], pairs[:half], uint32(16), numbers_, numbers_[3] - numbers_[7], levels[half:size])
        for i in range(size):
            if (integers[i] & _EXPONENT) == _EXPONENT:
                levels[i] = np.int32(numbers_[3])
    else:
        for i in range(size):
            x[i] = x[i] * numbers_[0] + numbers_[1]
        _round(x[:half], pairs[:half], uint32(0), numbers_, numbers_[3], levels[:half])
        _round(x[half:], pairs[:half], uint32(16), numbers_, numbers_[3], levels[half:size])
    for i in range(size, (size + 7) // 8 * 8):
        levels[i] = 0
    pack_block(levels, bits, out)
    return wrong


@function
def _stretch(x, numbers_):
    for i in range(len(x)):
        place = (x[i] * numbers_[0] + numbers_[1]) * numbers_[2]
        if abs(place) <= np.finfo(np.float32).max:
            x[i] = place


@function
def _round(place, pairs, shift, numbers_, top, levels):
    half, fine, least = numbers_[4], numbers_[5], numbers_[6]
    for i in range(len(place)):
        noise = (np.float32(np.int32((pairs[i] >> shift) & uint32(0xFFFF))) + half) * fine
        level = place[i] + noise
        level = level if level > least else least
        level = level if level < top else top
        levels[i] = np.int32(level)


@function
def decode_block(packed, bits, spoilt, numbers_, levels, out):
    """The entries of one block; ``levels`` is room for as many ``int32`` up to a multiple of eight."""
    unpack_block(packed, bits, levels)
    step, zero = numbers_[0], numbers_[1]
    if spoilt:
        for i in range(len(out)):
            out[i] = (np.float32(levels[i]) * numbers_[2] - zero) * step
            if levels[i] == np.int32(numbers_[3]) or bits == 1:
                out[i] = np.nan
    else:
        for i in range(len(out)):
            out[i] = (np.float32(levels[i]) - zero) * step
