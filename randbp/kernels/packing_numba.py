"""Integers of 1 to 8 bits packed into bytes, for numba's kernels: see :mod:`.packing`."""

import numpy as np
from numba import uint8, uint32, uint64

from .jit import function
from .words_numba import both, either, left, right


@function
def pack_block(codes, bits, out):
    """Pack a block's codes, ``int32`` with zeros up to a multiple of eight, into ``⌈n/8⌉·bits`` bytes."""
    length = len(out) // bits
    if bits == 4:
        _two(codes[: len(out)], codes[len(out) :], 0, out)
        return
    low = first = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            size, mask = width * length, (1 << width) - 1
            plane = out[first : first + size]
            if width == 8:
                _one(codes[:size], plane)
            elif width == 4:
                _two(codes[:size], codes[size : 2 * size], low, plane)
            else:
                _four(codes[:size], codes[size:], codes[2 * size :], codes[3 * size :], low, mask, width, plane)
                if width == 1:
                    rest = codes[4 * size :]
                    _four_more(rest[:size], rest[size:], rest[2 * size :], rest[3 * size :], low, plane)
            first, low = first + size, low + width


@function
def _one(codes, plane):
    for i in range(len(plane)):
        plane[i] = uint8(codes[i])


@function
def _two(a, b, low, plane):
    for i in range(len(plane)):
        plane[i] = uint8(((a[i] >> low) & 15) | (((b[i] >> low) & 15) << 4))


@function
def _four(a, b, c, d, low, mask, width, plane):
    for i in range(len(plane)):
        upper = (((c[i] >> low) & mask) << (2 * width)) | (((d[i] >> low) & mask) << (3 * width))
        plane[i] = uint8(((a[i] >> low) & mask) | (((b[i] >> low) & mask) << width) | upper)


@function
def _four_more(a, b, c, d, low, plane):
    for i in range(len(plane)):
        upper = (((c[i] >> low) & 1) << 6) | (((d[i] >> low) & 1) << 7)
        plane[i] |= uint8((((a[i] >> low) & 1) << 4) | (((b[i] >> low) & 1) << 5) | upper)


@function
def unpack_block(packed, bits, codes):
    """The inverse: codes up to a multiple of eight, as ``uint32``."""
    whole = codes.view(np.uint32)
    length = len(packed) // bits
    low = first = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            size, mask = width * length, uint32((1 << width) - 1)
            for number in range(8 // width):
                place, down = uint64(number * size), uint32(number * width)
                _unslab(packed, uint64(first), uint64(size), down, mask, uint32(low), whole, place)
            first, low = first + size, low + width


@function
def _unslab(packed, first, size, down, mask, low, codes, place):
    if low:
        for i in range(size):
            code = left(both(right(uint32(packed[first + i]), down), mask), low)
            codes[place + i] = either(codes[place + i], code)
    else:
        for i in range(size):
            codes[place + i] = both(right(uint32(packed[first + i]), down), mask)
