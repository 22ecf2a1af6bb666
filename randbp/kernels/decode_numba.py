"""Entries from integers of a few bits by numba: see :mod:`.decode`."""

import numpy as np
import torch
from numba import prange, uint32, uint64
from torch import Tensor

from .jit import function, parallel, room, tasks
from .memory_numba import array, kind, numpy_dtype, store
from .noise import start
from .noise_numba import words
from .packing_numba import unpack_block
from .words_numba import add, both, left, right, subtract

_ONE, _UP, _DOWN, _MIDDLE, _EVEN = uint32(1), uint32(17), uint32(15), uint32(2**16 - 1), uint32(2**17 - 2)


def decode(
    codes: Tensor,
    scales: Tensor,
    seed: int,
    first: int,
    bits: int,
    block: int,
    entries: int,
    dithered: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The same bits as the reference's."""
    direct = dtype if dtype in (scales.dtype, torch.bfloat16) and scales.dtype == torch.float32 else scales.dtype
    result = torch.empty(len(codes), entries, dtype=direct)
    if result.numel():
        parts = tasks(result.numel())
        precise = numpy_dtype(scales.dtype)
        numbers: np.ndarray = np.array([0.5, 2**-16], precise)
        _decode(
            array(codes.contiguous()), array(scales.contiguous()), array(result), kind(direct), uint64(start(seed)),
            first, bits, block, dithered, numbers, *room(parts, block, precise), parts,
        )  # fmt: skip
    return result.to(dtype)


@parallel
def _decode(codes, scales, result, kind, start, first, bits, block, dithered, numbers, room, words, tasks):
    rows, entries = result.shape
    blocks, padded = scales.shape[1], (block + 7) // 8 * 8
    each = (rows * blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, pairs, levels = room[task, 0], words[task, 0], words[task, 1]
        for number in range(task * each, min(rows * blocks, (task + 1) * each)):
            row = number // blocks
            place = number - row * blocks
            size = min(block, entries - place * block)
            at, length = place * (padded // 8) * bits, (size + 7) // 8 * bits
            decode_block(
                codes[row, at : at + length], scales[row, place], start, first + number, bits, dithered, numbers, pairs,
                levels, x[:size],
            )  # fmt: skip
            store(x[:size], kind, result[row, place * block : place * block + size])


@function
def decode_block(packed, scale, start, number, bits, dithered, numbers, pairs, levels, out):
    """The entries of one block.

    ``numbers`` are ``1/2`` and ``2^-16`` in the precision of ``out``; ``pairs`` and ``levels``, ``uint32``, are room
    for its noise and its integers (:func:`.jit.room`).
    """
    size = len(out)
    unpack_block(packed, bits, levels)
    least, step = scale[0], abs(scale[1])
    if dithered:
        half = (size + 1) // 2
        words(start, number, pairs[:half])
        whole, unit = levels.view(np.uint32), numbers[0] * numbers[1]
        _less_low(whole, pairs, uint64(half), unit, least, step, out)
        _less_high(whole, pairs, uint64(half), uint64(size - half), unit, least, step, out)
    else:
        for i in range(size):
            out[i] = np.float32(np.int32(levels[i])) * step + least
    if np.signbit(scale[1]):
        for i in range(size):
            if levels[i] == (1 << bits) - 1:
                out[i] = np.nan


@function
def _less_low(levels, pairs, half, unit, least, step, out):
    """``k + 1/2 - u`` is ``2^-17`` times the integer ``2^17 k + 2^16 - 1 - 2 j``, where ``u = (2 j + 1) / 2^17``."""
    for i in range(half):
        twice = both(left(pairs[i], _ONE), _EVEN)
        place = subtract(add(left(levels[i], _UP), _MIDDLE), twice)
        out[i] = out.dtype.type(np.int32(place)) * unit * step + least


@function
def _less_high(levels, pairs, half, rest, unit, least, step, out):
    """The same with the other halves of the words."""
    for i in range(rest):
        twice = both(right(pairs[i], _DOWN), _EVEN)
        place = subtract(add(left(levels[half + i], _UP), _MIDDLE), twice)
        out[half + i] = out.dtype.type(np.int32(place)) * unit * step + least
