"""Entries that numba's kernels read and write, whatever their dtype: single or double precision within.

The functions take pointers (:mod:`.instructions_numba`). A ``kind`` says what the entries of an array of 16 bits are.
"""

import numpy as np
from numba import int32, types, uint16, uint32
from numba.extending import overload

from .instructions_numba import add, as_unsigned, bits_of, both, either, left, number_of, right, subtract
from .jit import BFLOAT16, inlined

_13, _16 = uint32(13), uint32(16)
_SIGN, _SIZE, _EXPONENT = uint32(0x8000), uint32(0x7FFF), uint32(0x7F800000)
_NORMAL, _SPECIAL, _UP, _FROM = uint32(0x0400 << 13), uint32(0x7C00 << 13), uint32(112 << 23), uint32(113 << 23)
_SMALLEST = np.float32(2.0**-14)
_INFINITE, _QUIET, _LESS = uint32(0x7C00), uint32(0x7E00), uint32(112 << 10)
_ONE, _ALL, _HALF, _HALF_BITS = uint32(1), uint32(0x7FFFFFFF), np.float32(0.5), uint32(0x3F000000)


def loaded(source, size, kind, out):
    """Entries of an array of that kind in the precision of ``out``: where they are, or a copy there."""


@overload(loaded, jit_options={"error_model": "numpy"})
def _load_as_needed(source, size, kind, out):
    if source == out:
        return lambda source, size, kind, out: source
    if source.dtype == types.uint16:

        def from_bits(source, size, kind, out):
            bits = as_unsigned(out)
            if kind == BFLOAT16:
                for i in range(size):
                    bits[i] = left(uint32(source[i]), _16)
            else:
                for i in range(size):
                    out[i] = _of_half(uint32(source[i]))
            return out

        return from_bits

    def converted(source, size, kind, out):
        for i in range(size):
            out[i] = source[i]
        return out

    return converted


def buffer_of(out, room):
    """Where entries of an array are made: there, if it has their precision, else in a buffer."""


@overload(buffer_of)
def _choose_buffer(out, room):
    return (lambda out, room: out) if out == room else (lambda out, room: room)


def stored(values, size, kind, out):
    """Move entries made in a :func:`buffer <buffer_of>` to an array of that kind, rounded to the nearest."""


@overload(stored, jit_options={"error_model": "numpy"})
def _store_as_needed(values, size, kind, out):
    if values == out:
        return lambda values, size, kind, out: None
    if out.dtype == types.uint16:

        def round_to_bits(values, size, kind, out):
            if kind == BFLOAT16:
                for i in range(size):
                    each = uint32(bits_of(np.float32(values[i])))
                    rounded = right(_nearest(each, _16), _16)
                    out[i] = uint16(0x7FC0) if both(each, _ALL) > _EXPONENT else uint16(rounded)
            else:
                for i in range(size):
                    out[i] = _to_half(np.float32(values[i]))

        return round_to_bits

    def convert(values, size, kind, out):
        for i in range(size):
            out[i] = values[i]

    return convert


def copied(values, size, kind, out):
    """Move entries from a buffer to an array of that kind, whatever its precision."""


@overload(copied)
def _copy_as_needed(values, size, kind, out):
    if values != out:
        return lambda values, size, kind, out: stored(values, size, kind, out)

    def copy(values, size, kind, out):
        for i in range(size):
            out[i] = values[i]

    return copy


@inlined
def _nearest(bits, dropped):
    """Bits of which so many will be cut off, moved so that the nearest number remains, of two the even one."""
    return add(add(bits, subtract(left(_ONE, subtract(dropped, _ONE)), _ONE)), both(right(bits, dropped), _ONE))


@inlined
def _to_half(number):
    """The half-precision bits of a number."""
    bits = uint32(bits_of(number))
    size = both(bits, _ALL)
    normal = subtract(right(_nearest(size, _13), _13), _LESS)
    small = subtract(uint32(bits_of(number_of(int32(size)) + _HALF)), _HALF_BITS)  # the addition rounds
    large = normal if normal < _INFINITE else _INFINITE
    cut = _QUIET if size > _EXPONENT else large
    cut = small if size < _FROM else cut
    return uint16(either(cut, both(right(bits, _16), _SIGN)))


@inlined
def _of_half(half):
    """The number whose half-precision bits these are."""
    rest = left(both(half, _SIZE), _13)
    normal, small = add(rest, _UP), number_of(int32(add(rest, _FROM))) - _SMALLEST
    infinite = either(rest, _EXPONENT)
    size = normal if rest >= _NORMAL else uint32(bits_of(small))
    return number_of(int32(either(left(both(half, _SIGN), _16), infinite if rest >= _SPECIAL else size)))
