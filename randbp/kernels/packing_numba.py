"""Integers of 1 to 8 bits packed into bytes, for numba's kernels: see :mod:`.packing`."""

from numba import uint8

from .jit import function


@function
def pack_block(codes, bits, out):
    """Pack a block's codes, ``int32`` with zeros up to a multiple of eight, into ``⌈n/8⌉·bits`` bytes."""
    length = len(out) // bits
    low = first = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            size, mask = width * length, (1 << width) - 1
            plane = out[first : first + size]
            _slab(codes[:size], low, mask, 0, plane, False)
            for number in range(1, 8 // width):
                _slab(codes[number * size : (number + 1) * size], low, mask, number * width, plane, True)
            first, low = first + size, low + width


@function
def _slab(codes, low, mask, up, plane, add):
    if add:
        for i in range(len(plane)):
            plane[i] |= uint8(((codes[i] >> low) & mask) << up)
    else:
        for i in range(len(plane)):
            plane[i] = uint8((codes[i] >> low) & mask)


@function
def unpack_block(packed, bits, codes):
    """The inverse: codes up to a multiple of eight, as ``int32``."""
    length = len(packed) // bits
    low = first = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            size, mask = width * length, (1 << width) - 1
            plane = packed[first : first + size]
            for number in range(8 // width):
                _unslab(plane, number * width, mask, low, codes[number * size : (number + 1) * size])
            first, low = first + size, low + width


@function
def _unslab(plane, down, mask, low, codes):
    if low:
        for i in range(len(plane)):
            codes[i] |= ((plane[i] >> down) & mask) << low
    else:
        for i in range(len(plane)):
            codes[i] = (plane[i] >> down) & mask
