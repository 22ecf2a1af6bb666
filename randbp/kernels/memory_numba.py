"""Entries that numba's kernels read and write, whatever their dtype: single or double precision within.

The functions take pointers (:mod:`.instructions_numba`). A ``kind`` says what the entries of an array of 16 bits are.
"""

import numpy as np
from numba import types, uint16, uint32
from numba.extending import overload

from .instructions_numba import add, as_unsigned, bits_of, both, half_of, left, number_of_half, right
from .jit import BFLOAT16

_1, _16, _BELOW = uint32(1), uint32(16), uint32(0x7FFF)
_SIZE, _INFINITE = uint32(0x7FFFFFFF), uint32(0x7F800000)


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
                    out[i] = number_of_half(source[i])
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
                    rounded = right(add(add(each, _BELOW), both(right(each, _16), _1)), _16)  # of two the even one
                    out[i] = uint16(0x7FC0) if both(each, _SIZE) > _INFINITE else uint16(rounded)
            else:
                for i in range(size):
                    out[i] = half_of(np.float32(values[i]))

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
