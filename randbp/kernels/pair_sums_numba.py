"""Sums of products of pairs of positions by numba: see :mod:`.pair_sums`."""

import torch
from numba import prange, uint64
from torch import Tensor

from .jit import parallel, parts_of, share, summing

CHANNELS = 128
"""That are summed side by side, at most: their sums of one entry stay in the processor's first cache."""

NARROW = 32
"""Channels that one thread sums at least."""

POSITIONS = 2**9
"""Of both tensors that are read for all entries before the next ones are, about."""


def pair_sums(left: Tensor, right: Tensor, pairs: Tensor, starts: Tensor) -> Tensor:
    """The same as the reference's, up to the order of the sums."""
    if left.dtype not in (torch.float32, torch.float64):
        return pair_sums(left.float(), right.float(), pairs, starts).to(left.dtype)
    batch, positions, channels = left.shape
    result = left.new_empty(channels, len(starts) - 1)
    together = max(1, min(batch, POSITIONS // max(1, positions + right.shape[1])))
    parts = max(1, parts_of(batch * len(pairs) * channels))
    blocks = max(-(-channels // CHANNELS), min(parts, torch.get_num_threads(), channels // NARROW))
    parts = min(blocks, parts) if result.numel() else 0
    sums = left.new_empty(parts, len(starts) - 1, CHANNELS)
    _pair_sums(left, right, pairs, starts, sums, result, together, blocks, tasks=parts)
    return result


@parallel
def _pair_sums(left, right, pairs, starts, sums, result, together, blocks, tasks):
    batch, channels = left.shape[0], left.shape[2]
    x, y, out = left.reshape(-1), right.reshape(-1), sums.reshape(-1)
    entries, far = uint64(len(starts) - 1), uint64(CHANNELS)
    for task in prange(tasks):
        start = uint64(task) * entries * far
        for block in share(task, tasks, blocks):
            first, last = uint64(block * channels // blocks), uint64((block + 1) * channels // blocks)
            for i in range(entries * far):
                out[start + i] = 0
            for begin in range(0, batch, together):
                for k in range(entries):
                    for n in range(begin, min(batch, begin + together)):
                        here, there = uint64(n * left.shape[1] * channels), uint64(n * right.shape[1] * channels)
                        _add(
                            x, y, here + first, there + first, uint64(channels), pairs, uint64(starts[k]),
                            uint64(starts[k + 1]), out, start + uint64(k) * far, last - first,
                        )  # fmt: skip
            for k in range(entries):
                for c in range(last - first):
                    result[first + c, k] = out[start + k * far + c]


@summing
def _add(x, y, here, there, step, pairs, first, last, out, at, count):
    """Add the products of some pairs, four at a time, which read and write the sums once."""
    p = first
    while p + uint64(4) <= last:
        a, b = here + uint64(pairs[p, 0]) * step, there + uint64(pairs[p, 1]) * step
        c, d = here + uint64(pairs[p + uint64(1), 0]) * step, there + uint64(pairs[p + uint64(1), 1]) * step
        e, f = here + uint64(pairs[p + uint64(2), 0]) * step, there + uint64(pairs[p + uint64(2), 1]) * step
        g, h = here + uint64(pairs[p + uint64(3), 0]) * step, there + uint64(pairs[p + uint64(3), 1]) * step
        for i in range(count):
            out[at + i] += x[a + i] * y[b + i] + x[c + i] * y[d + i] + x[e + i] * y[f + i] + x[g + i] * y[h + i]
        p += uint64(4)
    while p < last:
        a, b = here + uint64(pairs[p, 0]) * step, there + uint64(pairs[p, 1]) * step
        for i in range(count):
            out[at + i] += x[a + i] * y[b + i]
        p += uint64(1)
