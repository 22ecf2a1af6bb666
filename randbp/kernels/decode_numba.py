"""Entries from integers of a few bits by numba: see :mod:`.decode`."""

import numpy as np
import torch
from numba import prange, uint32, uint64
from torch import Tensor

from .jit import function, parallel, tasks
from .memory_numba import array, kind, numpy_dtype, store
from .noise import start
from .noise_numba import words
from .packing_numba import unpack_block


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
        numbers: np.ndarray = np.array([0.5, 2**-16], numpy_dtype(scales.dtype))
        _decode(
            array(codes.contiguous()), array(scales.contiguous()), array(result), kind(direct), uint64(start(seed)),
            first, bits, block, dithered, numbers, tasks(result.numel()),
        )  # fmt: skip
    return result.to(dtype)


@parallel
def _decode(codes, scales, result, kind, start, first, bits, block, dithered, numbers, tasks):
    rows, entries = result.shape
    blocks, padded = scales.shape[1], (block + 7) // 8 * 8
    each = (rows * blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x = np.empty(block, scales.dtype)
        pairs, levels = np.empty((block + 1) // 2, np.uint32), np.empty(padded, np.int32)
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

    ``numbers`` are ``1/2`` and ``2^-16`` in the precision of ``out``; ``pairs`` and ``levels`` are room for half as
    many ``uint32`` and, up to a multiple of eight, as many ``int32``.
    """
    size = len(out)
    unpack_block(packed, bits, levels)
    least, step = scale[0], abs(scale[1])
    if dithered:
        half = (size + 1) // 2
        words(start, number, pairs[:half])
        _less_noise(levels[:half], pairs[:half], uint32(0), numbers, least, step, out[:half])
        _less_noise(levels[half:size], pairs[:half], uint32(16), numbers, least, step, out[half:])
    else:
        for i in range(size):
            out[i] = np.float32(levels[i]) * step + least
    if np.signbit(scale[1]):
        for i in range(size):
            if levels[i] == (1 << bits) - 1:
                out[i] = np.nan


@function
def _less_noise(levels, pairs, shift, numbers, least, step, out):
    for i in range(len(out)):
        noise = (np.float32(np.int32((pairs[i] >> shift) & uint32(0xFFFF))) + numbers[0]) * numbers[1] - numbers[0]
        out[i] = (np.float32(levels[i]) - noise) * step + least
