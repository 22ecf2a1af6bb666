"""Positions as rows by numba: see :mod:`.position_rows`."""

from math import gcd

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .jit import function, parallel, share
from .noise import BLOCK, start
from .position_rows import position_rows as fused
from .stochastic_cast_numba import round_block

_TOGETHER = 128
"""Rows that are made at a time, at least [rows]."""


def position_rows(planes, numbers, weights, seed, dtype) -> Tensor:
    """The same bits as the reference's."""
    innermost = planes.stride(1) == 1
    if planes.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16, torch.float16) or innermost:
        return fused.reference(planes, numbers, weights, seed, dtype)
    batch, channels, positions = planes.shape
    count = batch * positions if numbers is None else len(numbers)
    some = numbers if numbers is not None else torch.empty(0, dtype=torch.int64)
    weighted = weights if weights is not None else torch.empty(0)
    rows = torch.empty(count, channels, dtype=dtype)
    # Noise comes in blocks of entries, so rows are made by groups of whole blocks.
    step = BLOCK // gcd(BLOCK, channels) if dtype != torch.float32 else 1
    together = step * max(1, -(-_TOGETHER // step))
    groups = -(-count // together)
    if dtype == torch.float32:
        target, kind = rows, 0
    else:
        target, kind = rows.view(torch.uint16), 2 if dtype == torch.float16 else 1
    _rows(
        planes, some, weighted, count, target.view(-1), kind, uint64(start(seed)), together,
        entries=rows.numel() if groups else 0,
    )  # fmt: skip
    return rows


@parallel
def _rows(planes, numbers, weights, count, out, kind, start, together, tasks):
    channels = planes.shape[1]
    for task in prange(tasks):
        tile, pairs = np.empty(together * channels, np.float32), np.empty(BLOCK // 2, np.uint32)
        places = np.empty(together, np.uint32)
        for group in share(task, tasks, (count + together - 1) // together):
            first = group * together
            size = min(together, count - first)
            _collect(planes, numbers, weights, first, size, places, tile)
            begin, end = first * channels, (first + size) * channels
            if kind == 0:
                for i in range(end - begin):
                    out[begin + i] = tile[i]
            else:
                for at in range(begin, end, BLOCK):
                    stop = min(at + BLOCK, end)
                    bits = tile[at - begin : stop - begin].view(np.uint32)
                    round_block(bits, start, at // BLOCK, kind == 2, pairs, out[at:stop])


@function
def _collect(planes, numbers, weights, first, size, places, tile):
    """Some rows, one channel after the other; ``places`` is room for their positions."""
    channels, positions = planes.shape[1], planes.shape[2]
    listed, begin = len(numbers) > 0, 0
    while begin < size:  # rows of one example
        n = (numbers[first + begin] if listed else first + begin) // positions
        end, shift = begin, n * positions
        while end < size:
            place = (numbers[first + end] if listed else first + end) - shift
            if place < 0 or place >= positions:
                break
            places[end] = place
            end += 1
        if len(weights):
            for c in range(channels):
                plane = planes[n, c]
                for s in range(begin, end):
                    tile[s * channels + c] = plane[places[s]] * weights[first + s]
        else:
            for c in range(channels):
                plane = planes[n, c]
                for s in range(begin, end):
                    tile[s * channels + c] = plane[places[s]]
        begin = end
