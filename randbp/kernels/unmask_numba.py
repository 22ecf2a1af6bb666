"""Masks from bits, by numba: see :mod:`.unmask`."""

import torch
from numba import prange, uint8
from torch import Tensor

from .jit import function, parallel, tasks
from .mask_bits import BLOCK
from .memory_numba import array


def unmask(bits: Tensor, count: int) -> Tensor:
    """The same as the reference's."""
    mask = torch.empty(count, dtype=torch.bool)
    if count:
        _unmask(array(bits.contiguous()), array(mask.view(torch.uint8)), tasks(count))
    return mask


@parallel
def _unmask(bits, mask, tasks):
    entries = len(mask)
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
                    _bit(some, k, mask[first + start : first + stop])


@function
def _bit(bits, k, mask):
    for j in range(len(mask)):
        mask[j] = (bits[j] >> uint8(k)) & uint8(1)
