"""Patches of rows by numba: see :mod:`.patches`."""

import numpy as np
import torch
from numba import prange, types
from numba.extending import overload
from torch import Tensor

from .instructions_numba import left, number_of
from .jit import function, parallel, share
from .patches import gather_patches as gathered
from .patches import scatter_patches as scattered
from .patches import sum_dtype

_WIDTH = 32
"""Channels that a part of the work adds up, at least [entries]."""


def gather_patches(rows, numbers, table, count) -> Tensor:
    """The same bits as the reference's."""
    if not rows.is_floating_point() or not len(rows):
        return gathered.reference(rows, numbers, table, count)
    patches = torch.empty(len(numbers), table.shape[1], rows.shape[1], dtype=rows.dtype)
    _gather(rows, numbers, table, count, patches, entries=patches.numel())
    return patches


@parallel
def _gather(rows, numbers, table, count, patches, tasks):
    for task in prange(tasks):
        for s in share(task, tasks, len(numbers)):
            example = numbers[s] // len(table)
            o, first = numbers[s] - example * len(table), example * count
            for k in range(table.shape[1]):
                if table[o, k] < 0:
                    patches[s, k] = 0
                else:
                    patches[s, k] = rows[first + table[o, k]]


def scatter_patches(patches, numbers, table, count, examples) -> Tensor:
    """The same bits as the reference's."""
    if patches.dtype == torch.float16:
        return scattered.reference(patches, numbers, table, count, examples)
    width = patches.shape[2]
    sums = torch.zeros(examples * count, width, dtype=sum_dtype(patches.dtype))
    parts = max(1, min(width // _WIDTH, 4 * torch.get_num_threads())) if patches.numel() else 0
    _scatter(patches, numbers, table, count, sums, tasks=parts)
    return sums


@parallel
def _scatter(patches, numbers, table, count, sums, tasks):
    for task in prange(tasks):
        some = share(task, tasks, sums.shape[1])
        for s in range(len(numbers)):
            example = numbers[s] // len(table)
            o, first = numbers[s] - example * len(table), example * count
            for k in range(table.shape[1]):
                if table[o, k] >= 0:
                    row = first + table[o, k]
                    _add(patches[s, k, some.start : some.stop], sums[row, some.start : some.stop])


def _plain(bits):
    """The number that an entry of an array of numbers, or of the bits of bfloat16, stands for."""


@overload(_plain, inline="always")
def _choose_plain(bits):
    if bits == types.uint16:
        return lambda bits: number_of(np.int32(left(np.uint32(bits), np.uint32(16))))
    return lambda bits: bits


@function
def _add(values, sums):
    for c in range(len(sums)):
        sums[c] += _plain(values[c])
