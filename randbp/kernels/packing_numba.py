"""Integers of 1 to 8 bits packed into bytes, for numba's kernels: see :mod:`.packing`."""

from numba import uint8, uint64

from .instructions_numba import both, either, left, right
from .jit import function

_1, _2, _3, _4, _6, _15 = (uint8(n) for n in (1, 2, 3, 4, 6, 15))


@function
def pack_bytes(codes, length, bits, out):
    """Pack ``8 length`` codes, ``uint8`` below ``2^bits``; both are pointers."""
    length = uint64(length)
    low, first = uint64(0), uint64(0)
    for width in (8, 4, 2, 1):
        if bits & width:
            size = uint64(width) * length
            if width == 8:
                _bytes(codes, size, out)
            elif width == 4:
                _halves(codes, size, uint8(low), first, out)
            elif width == 2:
                _quarters(codes, size, uint8(low), first, out)
            else:
                _eighths(codes, size, uint8(low), first, out)
            first, low = first + size, low + uint64(width)


@function
def _bytes(codes, size, out):
    for i in range(size):
        out[i] = codes[i]


@function
def _halves(codes, size, low, first, out):
    for i in range(size):
        out[first + i] = either(both(right(codes[i], low), _15), left(right(codes[size + i], low), _4))


@function
def _quarters(codes, size, low, first, out):
    for i in range(size):
        a, b = both(right(codes[i], low), _3), both(right(codes[size + i], low), _3)
        c, d = both(right(codes[size + size + i], low), _3), right(codes[size + size + size + i], low)
        out[first + i] = either(either(a, left(b, _2)), either(left(c, _4), left(d, _6)))


@function
def _eighths(codes, size, low, first, out):
    for i in range(size):
        out[first + i] = both(right(codes[i], low), _1)
    for number in range(1, 8):
        place, up = uint64(number) * size, uint8(number)
        for i in range(size):
            out[first + i] = either(out[first + i], left(both(right(codes[place + i], low), _1), up))


@function
def unpack_bytes(packed, length, bits, codes):
    """The inverse of :func:`pack_bytes`."""
    length = uint64(length)
    low, first = uint64(0), uint64(0)
    for width in (8, 4, 2, 1):
        if bits & width:
            size, mask = uint64(width) * length, uint8((1 << width) - 1)
            for number in range(8 // width):
                place, down = uint64(number) * size, uint8(number * width)
                _unslab(packed, first, size, down, mask, uint8(low), codes, place)
            first, low = first + size, low + uint64(width)


@function
def _unslab(packed, first, size, down, mask, low, codes, place):
    if low:
        for i in range(size):
            code = left(both(right(packed[first + i], down), mask), low)
            codes[place + i] = either(codes[place + i], code)
    else:
        for i in range(size):
            codes[place + i] = both(right(packed[first + i], down), mask)
