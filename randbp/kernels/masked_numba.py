"""Entries times one of two numbers, by numba: see :mod:`.masked`."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .inside_numba import INTEGERS
from .jit import function, parallel, room, tasks
from .levels import scale_dtype
from .mask_bits import BLOCK
from .memory_numba import array, buffer_of, kind, loaded, numpy_dtype, storable, stored
from .pointers_numba import at, part_of


def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """The same bits as the reference's."""
    source = values.contiguous()
    if not len(values):
        return torch.empty_like(source)
    number, packed = tasks(len(values)), array(bits.contiguous())
    if other is None and factor == 1:  # chosen as integers: nothing happens to what is kept
        integers, result = INTEGERS[values.itemsize], torch.empty_like(source)
        _keep(array(source.view(integers)), packed, array(result.view(integers)), number)
        return result
    precise = scale_dtype(values.dtype)
    result = torch.empty_like(source, dtype=storable(values.dtype))
    factors: np.ndarray = np.array([factor, 0 if other is None else other], numpy_dtype(precise))
    buffers, _ = room(number, BLOCK // 8, numpy_dtype(precise))
    _scale(array(source), kind(values.dtype), packed, factors, other is None, array(result), buffers, number)
    return result.to(values.dtype)


@parallel
def _keep(source, bits, result, tasks):
    entries = len(source)
    blocks = (entries + BLOCK - 1) // BLOCK
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first = number * BLOCK
            size = min(BLOCK, entries - first)
            length = (size + 7) // 8
            some = bits[first // 8 : first // 8 + length]
            for k in range(8):
                start, stop = k * length, min(size, (k + 1) * length)
                if start < stop:
                    _kept(source[first + start : first + stop], some, k, result[first + start : first + stop])


@function
def _kept(x, bits, k, y):
    for j in range(len(x)):
        y[j] = x[j] & -((bits[j] >> k) & 1)


@parallel
def _scale(source, kind, bits, factors, drops, result, room, tasks):
    entries = len(source)
    blocks = (entries + BLOCK - 1) // BLOCK
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        buffer = part_of(room, task)
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first = number * BLOCK
            size = min(BLOCK, entries - first)
            length = (size + 7) // 8
            packed = at(bits, first // 8)
            for k in range(8):
                start, count = first + k * length, min(length, size - k * length)
                if count > 0:
                    out = at(result, start)
                    y = buffer_of(out, buffer)
                    _scaled(loaded(at(source, start), count, kind, buffer), count, packed, k, at(factors, 0), drops, y)
                    stored(y, count, out)


@function
def _scaled(x, count, bits, k, factors, drops, y):
    factor, other = factors[0], factors[1]
    if drops:
        for j in range(count):
            y[j] = x[j] * factor if (bits[j] >> k) & 1 else other
    else:
        for j in range(count):
            y[j] = x[j] * (factor if (bits[j] >> k) & 1 else other)
