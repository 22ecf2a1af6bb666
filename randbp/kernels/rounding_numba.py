"""Blocks of entries rounded stochastically to levels and packed, for numba's kernels, whatever the levels are.

A *rule* is a tuple of numbers that says where an entry lies among the levels, by its length: ``(a, 1/h)`` for
``(x - a) / h``, ``(1/h, o, 0)`` for ``x / h + o`` but 0 at least, ``(1/h, o, 0, s)`` for ``(x / h + o) s``.
"""

from numba import int32, uint8, uint64
from numba.extending import overload

from .instructions_numba import either, left
from .jit import function
from .noise_numba import high_uniform, keys, low_uniform, word
from .packing_numba import pack_bytes

_FOUR = uint8(4)


def _level(x, noise, rule, top):
    """The level of an entry."""


@overload(_level, jit_options={"error_model": "numpy"})
def _by_rule(x, noise, rule, top):
    if len(rule) == 2:

        def by_offset(x, noise, rule, top):
            level = int32((x - rule[0]) * rule[1] + noise)
            return uint8(level if level < top else top)

        return by_offset

    if len(rule) == 3:
        return lambda x, noise, rule, top: _within(x * rule[0] + rule[1] + noise, rule[2], top)
    return lambda x, noise, rule, top: _within((x * rule[0] + rule[1]) * rule[3] + noise, rule[2], top)


@function
def _within(level, least, top):
    level = level if level > least else least
    return uint8(int32(level if level < top else top))


@function
def round_block(x, size, rule, top, start, number, bits, levels, packed):
    """Packed levels, up to ``top``, of the entries of a block of the noise; two of them share a word.

    ``levels`` is room for as many bytes as there are entries, up to a multiple of eight.
    """
    low, high = keys(start, number)
    half = uint64((size + 1) // 2)
    if bits == 4 and size % 8 == 0:  # the two that share a word share a byte
        for i in range(half):
            each = word(i, low, high)
            first = _level(x[i], low_uniform(each), rule, top)
            second = _level(x[half + i], high_uniform(each), rule, top)
            packed[i] = either(first, left(second, _FOUR))
        return
    rest = uint64(size) - half
    for i in range(rest):
        each = word(i, low, high)
        levels[i] = _level(x[i], low_uniform(each), rule, top)
        levels[half + i] = _level(x[half + i], high_uniform(each), rule, top)
    for i in range(rest, half):
        levels[i] = _level(x[i], low_uniform(word(i, low, high)), rule, top)
    _pack(levels, size, bits, packed)


@function
def round_spoilt_block(x, size, rule, top, limit, start, number, bits, levels, packed):
    """The same where the level above ``top`` is for entries that are NaN or whose magnitude is above a limit."""
    low, high = keys(start, number)
    half = uint64((size + 1) // 2)
    for i in range(uint64(size)):
        each = word(i if i < half else i - half, low, high)
        noise = low_uniform(each) if i < half else high_uniform(each)
        levels[i] = _level(x[i], noise, rule, top) if abs(x[i]) <= limit else uint8((1 << bits) - 1)
    _pack(levels, size, bits, packed)


@function
def _pack(levels, size, bits, packed):
    for i in range(size, (size + 7) // 8 * 8):
        levels[i] = 0
    pack_bytes(levels, (size + 7) // 8, bits, packed)
