"""Random numbers by counter for numba's kernels: see :mod:`.noise`."""

import numpy as np
from numba import int32, uint32, uint64

from . import noise
from .instructions_numba import add, both, differ, either, left, multiply, number_of, right
from .jit import function

_GAMMA, _SPLIT_1, _SPLIT_2 = (np.uint64(n) for n in (noise.GAMMA, *noise.SPLITS))
_FIRST, _SECOND, _STEP = (np.uint32(n) for n in (noise.FIRST, noise.SECOND, noise.STEP))
_LOW, _HIGH, _FRACTION, _MIDDLE, _UNIT = uint32(7), uint32(9), uint32(0x7FFF80), uint32(0x3F800040), np.float32(1)


@function
def keys(start, block):
    """The two keys of a block; ``start`` is :func:`.noise.start` of the seed."""
    z = start + uint64(block + 1) * _GAMMA
    z = (z ^ (z >> uint64(30))) * _SPLIT_1
    z = (z ^ (z >> uint64(27))) * _SPLIT_2
    z = z ^ (z >> uint64(31))
    return uint32(z), uint32(z >> uint64(32))


@function
def word(i, low, high):
    """A word of the block that has these keys."""
    x = add(multiply(uint32(i), _STEP), low)
    x = multiply(differ(x, right(x, uint32(16))), _FIRST)
    x = differ(x, right(x, uint32(15)))
    x = multiply(add(x, high), _SECOND)
    return differ(x, right(x, uint32(15)))


@function
def words(start, block, out):
    """Fill ``out`` with the first words of a block."""
    low, high = keys(start, block)
    for i in range(len(out)):
        out[i] = word(i, low, high)


@function
def low_uniform(word):
    """The number in ``(0, 1)`` that the low half of a word is: the mantissa of one between 1 and 2."""
    return number_of(int32(either(both(left(word, _LOW), _FRACTION), _MIDDLE))) - _UNIT


@function
def high_uniform(word):
    """The same of the high half."""
    return number_of(int32(either(both(right(word, _HIGH), _FRACTION), _MIDDLE))) - _UNIT
