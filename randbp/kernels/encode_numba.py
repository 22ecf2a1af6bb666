"""Stochastic rounding of blocks by numba: see :mod:`.encode`."""

import numpy as np
import torch
from numba import prange, uint32, uint64
from torch import Tensor

from .jit import function, parallel, tasks
from .levels import Rows, factors, scale_dtype
from .memory_numba import array, kind, load, numpy_dtype
from .noise import start
from .noise_numba import words
from .packing_numba import pack_block


def encode(values: Tensor, seed: int, first: int, bits: int, block: int, dithered: bool) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    rows, dtype = Rows(values.shape[1], block, bits), scale_dtype(values.dtype)
    codes = torch.empty(len(values), rows.nbytes, dtype=torch.uint8)
    scales = torch.empty(len(values), rows.blocks, 2, dtype=dtype)
    if values.numel():
        whole, spoilt = factors(bits, dithered)
        precise = numpy_dtype(dtype)
        limit = torch.finfo(dtype).max / 2
        numbers: np.ndarray = np.array([whole, np.nan if spoilt is None else spoilt, limit, 1, 0, 0.5, 2**-16], precise)
        integer = np.array([0, np.iinfo(np.int64).max], np.int64)
        if dtype == torch.float32:
            integer = np.array([0, np.iinfo(np.int32).max], np.int32)
        _encode(
            array(values.contiguous()), kind(values.dtype), array(codes), array(scales), uint64(start(seed)),
            first, bits, block, numbers, integer, tasks(values.numel()),
        )  # fmt: skip
    return codes, scales


@parallel
def _encode(source, kind, codes, scales, start, first, bits, block, numbers, integer, tasks):
    rows, entries = source.shape
    blocks, padded = scales.shape[1], (block + 7) // 8 * 8
    each = (rows * blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x = np.empty(block, scales.dtype)
        pairs, levels = np.empty((block + 1) // 2, np.uint32), np.zeros(padded, np.int32)
        for number in range(task * each, min(rows * blocks, (task + 1) * each)):
            row = number // blocks
            place = number - row * blocks
            size = min(block, entries - place * block)
            load(source[row, place * block : place * block + size], kind, x)
            some, scale = x[:size], scales[row, place]
            good = block_scales(some, numbers, integer, scale)
            least, step = scale[0], abs(scale[1])
            inverse = numbers[3] / step if step > numbers[4] else numbers[4]
            half = (size + 1) // 2
            words(start, first + number, pairs[:half])
            round_half(some[:half], least, inverse, pairs[:half], uint32(0), numbers, levels[:half])
            round_half(some[half:], least, inverse, pairs[:half], uint32(16), numbers, levels[half:size])
            finish(some, good, (1 << bits) - 1, numbers, levels[:size])
            for i in range(size, (size + 7) // 8 * 8):
                levels[i] = 0
            at, length = place * (padded // 8) * bits, (size + 7) // 8 * bits
            pack_block(levels, bits, codes[row, at : at + length])


@function
def block_scales(x, numbers, integer, scale):
    """Offset and step of a block; whether all entries are finite."""
    bits = x.view(integer.dtype)
    low, high = integer[1], ~integer[1]
    shift = 8 * integer.itemsize - 1
    for i in range(len(bits)):  # integers in the order of the numbers: minima of these are found many at a time
        key = bits[i] ^ ((bits[i] >> shift) & integer[1])
        low, high = min(low, key), max(high, key)
    ends = np.empty(2, x.dtype)
    ends_bits = ends.view(integer.dtype)
    ends_bits[0] = low ^ ((low >> shift) & integer[1])
    ends_bits[1] = high ^ ((high >> shift) & integer[1])
    limit = numbers[2]
    good = ends[0] >= -limit and ends[1] <= limit
    if good:
        step = (ends[1] - ends[0]) * numbers[0]
    else:
        ends[0], ends[1] = np.inf, -np.inf
        for i in range(len(x)):
            if abs(x[i]) <= limit:
                ends[0], ends[1] = min(ends[0], x[i]), max(ends[1], x[i])
        if ends[0] > ends[1]:
            ends[0] = ends[1] = numbers[4]
        step = -((ends[1] - ends[0]) * numbers[1])
        if np.isnan(numbers[1]):
            step = numbers[1]
    if np.isinf(numbers[3] / abs(step)):
        step = np.copysign(numbers[4], step)
    scale[0], scale[1] = ends[0] + numbers[4], step
    return good


@function
def round_half(x, least, inverse, pairs, shift, numbers, levels):
    """Levels of half of a block's entries, from one half of its noise's words."""
    for i in range(len(x)):
        noise = (np.float32(np.int32((pairs[i] >> shift) & uint32(0xFFFF))) + numbers[5]) * numbers[6]
        levels[i] = np.int32((x[i] - least) * inverse + noise)


@function
def finish(x, good, top, numbers, levels):
    """No level above the last; that one for entries that are not finite, where there are any."""
    if good:
        for i in range(len(levels)):
            levels[i] = min(levels[i], np.int32(top))
        return
    for i in range(len(levels)):
        finite = abs(x[i]) <= numbers[2]
        levels[i] = np.int32(max(0, min(levels[i], top - 1)) if finite else top)
