"""Which entries pass a comparison, by numba: see :mod:`.inside`."""

from typing import Any

import numpy as np
import torch
from numba import prange, uint8
from torch import Tensor

from .jit import function, parallel, tasks
from .mask_bits import BLOCK, mask_bytes
from .memory_numba import array

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """The same bits as the reference's."""
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8)
    if not len(values):
        return bits
    source, number = array(values.contiguous().view(INTEGERS[values.itemsize])), tasks(len(values))
    if test == "true":
        _pack(source, array(bits), number)
    else:
        _inside(source, *_interval(values.dtype, test, low, high), array(bits), number)
    return bits


def _interval(dtype: torch.dtype, test: str, low: float, high: float) -> tuple[Any, bool]:
    """Between which integers a number's :func:`key <_key>` passes, ends included, or fails."""
    integers = INTEGERS[dtype.itemsize]
    largest = torch.iinfo(integers).max
    numbers = torch.tensor([low, high, torch.inf, -torch.inf, 0.0], dtype=dtype).view(integers).tolist()
    below, above, top, bottom = ((value ^ largest) if value < 0 else value for value in numbers[:4])
    zeros = (-1, 0)  # of -0 and 0, which are equal
    down, up = ((min(zeros), max(zeros)) if end in zeros else (end, end) for end in (below, above))
    ends = {
        "over": (down[1] + 1, top),
        "not_under": (bottom, down[1]),
        "between": (down[1] + 1, up[0] - 1),
        "within": (down[0], up[1]),
    }[test]
    if any(np.isnan([low, high])):
        ends = (1, 0)
    ends_array: np.ndarray = np.array([*ends, largest], array(torch.empty(0, dtype=integers)).dtype)
    return ends_array, test == "not_under"


@parallel
def _inside(source, ends, outside, bits, tasks):
    entries = len(source)
    blocks = (entries + BLOCK - 1) // BLOCK
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first = number * BLOCK
            size = min(BLOCK, entries - first)
            length = (size + 7) // 8
            out = bits[first // 8 : first // 8 + length]
            out[:] = 0
            for k in range(8):
                start, stop = k * length, min(size, (k + 1) * length)
                if start < stop:
                    _compare(source[first + start : first + stop], ends, k, out)
            if outside:
                _turn(size - (size - 1) // length * length, (size - 1) // length, out)


@function
def _compare(x, ends, k, out):
    """Set bit ``k`` of as many bytes as there are entries, where their keys, in the order of the numbers, lie between.

    (Comparisons as numbers differ in how they treat NaN, and there are no numbers of 16 bits.)
    """
    shift = 8 * x.itemsize - 1
    low, high, largest = ends[0], ends[1], ends[2]
    for j in range(len(x)):
        key = x[j] ^ ((x[j] >> shift) & largest)
        out[j] |= uint8((uint8(key >= low) & uint8(key <= high)) << k)


@function
def _turn(last, k, out):
    """Turn all bits but those of no entry: of the highest ``k``-th bit, ``last`` bytes have one."""
    for j in range(len(out)):
        out[j] ^= uint8((2 << k) - 1) if j < last else uint8((1 << k) - 1)


@parallel
def _pack(source, bits, tasks):
    entries = len(source)
    blocks = (entries + BLOCK - 1) // BLOCK
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        for number in range(task * each, min(blocks, (task + 1) * each)):
            first = number * BLOCK
            size = min(BLOCK, entries - first)
            length = (size + 7) // 8
            out = bits[first // 8 : first // 8 + length]
            out[:] = 0
            for k in range(8):
                start, stop = k * length, min(size, (k + 1) * length)
                if start < stop:
                    _add(source[first + start : first + stop], k, out)


@function
def _add(codes, k, out):
    for j in range(len(codes)):
        out[j] |= uint8(codes[j] << k)
