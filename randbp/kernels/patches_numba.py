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

_WIDTH = 64
"""Channels that a part of the work adds up, at least [entries]."""


def gather_patches(rows, index) -> Tensor:
    """The same bits as the reference's."""
    if rows.itemsize > 8 or not rows.is_floating_point() or not len(rows):
        return gathered.reference(rows, index)
    patches = torch.empty(*index.shape, rows.shape[1], dtype=rows.dtype)
    _gather(rows, index, patches, entries=patches.numel())
    return patches


@parallel
def _gather(rows, index, patches, tasks):
    for task in prange(tasks):
        for s in share(task, tasks, len(index)):
            for k in range(index.shape[1]):
                row = index[s, k]
                if row < 0:
                    patches[s, k] = 0
                else:
                    patches[s, k] = rows[row]


def scatter_patches(patches, index, count) -> Tensor:
    """The same bits as the reference's."""
    if patches.dtype == torch.float16:
        return scattered.reference(patches, index, count)
    width = patches.shape[2]
    sums = torch.zeros(count, width, dtype=sum_dtype(patches.dtype))
    parts = max(1, min(width // _WIDTH, 4 * torch.get_num_threads())) if patches.numel() else 0
    _scatter(patches, index, sums, tasks=parts)
    return sums


@parallel
def _scatter(patches, index, sums, tasks):
    for task in prange(tasks):
        some = share(task, tasks, sums.shape[1])
        for s in range(len(index)):
            for k in range(index.shape[1]):
                row = index[s, k]
                if row >= 0:
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
