"""Patches of rows by numba: see :mod:`.patches`."""

import numpy as np
import torch
from numba import prange, types
from numba.extending import overload
from torch import Tensor

from .instructions_numba import at, beyond, left, number_of, part_of
from .jit import function, parallel, share
from .patches import gather_patches as gathered
from .patches import scatter_patches as scattered
from .patches import sum_dtype

_TILE = 16
"""Input positions whose sums are made together: a cache line of single precision [entries]."""


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
    width, dtype = patches.shape[2], sum_dtype(patches.dtype)
    planes = torch.empty(examples, width, count, dtype=dtype)
    if not patches.numel():
        return planes.zero_()
    first = torch.full((examples, len(table)), -1, dtype=torch.int32)
    starts, pairs = torch.zeros(count + 1, dtype=torch.int32), torch.empty(table.numel(), 2, dtype=torch.int32)
    _scatter(
        patches, numbers, table, first, torch.empty_like(numbers), starts, pairs, planes,
        entries=patches.numel(), room=(_TILE * width, dtype),
    )  # fmt: skip
    return planes


@parallel
def _scatter(patches, numbers, table, first, others, starts, pairs, planes, room, words, tasks):
    """Sums of what meets each input position, in the order of output positions.

    ``first`` is the row that was drawn for an output position, ``others`` the next one for the same. ``pairs`` from
    ``starts[i]`` on are output positions and kernel entries that meet input position ``i``.
    """
    entries, width, count = table.shape[1], planes.shape[1], planes.shape[2]
    for s in range(len(numbers) - 1, -1, -1):
        latest = at(first, numbers[s])
        others[s] = latest[0]
        latest[0] = s
    _list_pairs(table, starts, pairs)
    tiles = (count + _TILE - 1) // _TILE
    for task in prange(tasks):
        sums = part_of(room, task)
        for tile in share(task, tasks, len(planes) * tiles):
            n = tile // tiles
            begin = (tile - n * tiles) * _TILE
            size = min(_TILE, count - begin)
            for t in range(size):
                row = beyond(sums, t * width)
                for c in range(width):
                    row[c] = 0
                for pair in range(starts[begin + t], starts[begin + t + 1]):
                    s = first[n, pairs[pair, 0]]
                    while s >= 0:
                        _add(at(patches, (s * entries + pairs[pair, 1]) * width), width, row)
                        s = others[s]
            for c in range(width):
                plane = at(planes, (n * width + c) * count + begin)
                for t in range(size):
                    plane[t] = sums[t * width + c]


@function
def _list_pairs(table, starts, pairs):
    """Output positions and kernel entries, sorted by the input position that they meet."""
    for o in range(len(table)):
        for k in range(table.shape[1]):
            if table[o, k] >= 0:
                starts[table[o, k] + 1] += 1
    for i in range(1, len(starts)):
        starts[i] += starts[i - 1]
    free = starts.copy()
    for o in range(len(table)):
        for k in range(table.shape[1]):
            if table[o, k] >= 0:
                place = free[table[o, k]]
                pairs[place, 0] = o
                pairs[place, 1] = k
                free[table[o, k]] += 1


def _plain(bits):
    """The number that an entry of an array of numbers, or of the bits of bfloat16, stands for."""


@overload(_plain, inline="always")
def _choose_plain(bits):
    if bits == types.uint16:
        return lambda bits: number_of(np.int32(left(np.uint32(bits), np.uint32(16))))
    return lambda bits: bits


@function
def _add(values, size, sums):
    """Add entries to sums; both are pointers."""
    for c in range(size):
        sums[c] += _plain(values[c])
