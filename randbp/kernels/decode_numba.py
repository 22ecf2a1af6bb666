"""Entries from integers of a few bits by numba: see :mod:`.decode`."""

import numpy as np
import torch
from numba import prange, uint8, uint32, uint64
from torch import Tensor

from .instructions_numba import add, as_bytes, at, both, converted, left, part_of, right, subtract
from .jit import function, numbers, parallel, share
from .memory_numba import buffer_of, copied, stored
from .noise import BLOCK, start
from .noise_numba import keys, word
from .packing_numba import unpack_bytes

_ONE, _UP, _DOWN, _MIDDLE, _EVEN = uint32(1), uint32(17), uint32(15), uint32(2**16 - 1), uint32(2**17 - 2)
_4, _15 = uint8(4), uint8(15)


def decode(codes, scales, seed, first, bits, block, entries, dithered, dtype) -> Tensor:
    """The same bits as the reference's."""
    result = torch.empty(len(codes), entries, dtype=dtype)
    _decode(
        *(codes, scales, result, dtype, uint64(start(seed)), first, bits, block, dithered),
        numbers([0.5, 2**-16], scales.dtype), entries=result.numel(), room=(block, scales.dtype),
    )  # fmt: skip
    return result


@parallel
def _decode(codes, scales, result, kind, start, first, bits, block, dithered, numbers, room, words, tasks):
    entries, blocks, nbytes = result.shape[1], scales.shape[1], codes.shape[1]
    for task in prange(tasks):
        buffer, levels = part_of(room, task), as_bytes(part_of(words, task))
        for number in share(task, tasks, len(scales) * blocks):
            row = number // blocks
            place = number - row * blocks
            size = min(block, entries - place * block)
            out = at(result, row * entries + place * block)
            # (Noise makes two entries at a time: such a block is copied, since memory is best written in its order.)
            x = buffer if dithered else buffer_of(out, buffer)
            decode_block(
                at(codes, row * nbytes + place * ((block + 7) // 8 * bits)), size, at(scales, 2 * number), start,
                first + number, bits, dithered, at(numbers, 0), levels, x,
            )  # fmt: skip
            if dithered:
                copied(x, size, kind, out)
            else:
                stored(x, size, kind, out)


@function
def decode_block(packed, size, scale, start, number, bits, dithered, numbers, levels, out):
    """The entries of one block; what is not a number is a pointer.

    ``numbers`` are ``1/2`` and ``2^-16`` in the precision of ``out``; ``levels`` is room for as many bytes as there are
    entries, up to a multiple of eight.
    """
    least, step, spoilt = scale[0], abs(scale[1]), np.signbit(scale[1])
    half, unit = uint64((size + 1) // 2), numbers[0] * numbers[1]
    low, high = keys(start, number)
    if dithered and bits == 4 and size % 8 == 0 and not spoilt:
        for i in range(half):
            each = word(i, low, high)
            out[i] = _less(both(packed[i], _15), left(each, _ONE), unit) * step + least
            out[half + i] = _less(right(packed[i], _4), right(each, _DOWN), unit) * step + least
        return
    unpack_bytes(packed, (size + 7) // 8, bits, levels)
    if dithered:
        rest = uint64(size) - half
        for i in range(rest):
            each = word(i, low, high)
            out[i] = _less(levels[i], left(each, _ONE), unit) * step + least
            out[half + i] = _less(levels[half + i], right(each, _DOWN), unit) * step + least
        for i in range(rest, half):
            out[i] = _less(levels[i], left(word(i, low, high), _ONE), unit) * step + least
    else:
        for i in range(size):
            out[i] = np.float32(np.int32(levels[i])) * step + least
    if spoilt:
        for i in range(size):
            if levels[i] == (1 << bits) - 1:
                out[i] = np.nan


@function
def decode_number(codes, scales, start, bits, numbers, number, size, levels, out):
    """Entries of a block, dithered, of the one row that :func:`.encode_normalised` made; its codes are whole bytes."""
    packed, scale = at(codes, number * (BLOCK // 8 * bits)), at(scales, 2 * number)
    decode_block(packed, size, scale, start, number, bits, True, at(numbers, 0), levels, out)


@function
def _less(level, twice, unit):
    """``k + 1/2 - u``: ``2^-17`` times the integer ``2^17 k + 2^16 - 1 - 2 j``, where ``u = (2 j + 1) / 2^17``."""
    place = subtract(add(left(uint32(level), _UP), _MIDDLE), both(twice, _EVEN))
    return converted(np.int32(place), unit) * unit
