"""Kept positions of planes by numba: see :mod:`.gather`."""

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .gather import gather_planes as fused
from .gather import results
from .jit import function, numbers, parallel, share
from .sums_numba import dot, total

TOGETHER = 16
"""Channels that are written side by side, where these are innermost."""


def gather_planes(planes, positions, length, weights, order, what) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    if planes.dtype not in (torch.float32, torch.float64):
        return fused.reference(planes, positions, length, weights, order, what)
    kept, means, sums = results(planes, positions, length, weights, order, what)
    level, (batch, channels, _) = ("entries", "means", "deviations").index(what), planes.shape
    given = planes, positions, length, np.repeat(numbers(weights, planes.dtype), length), level
    if order == "rows":
        _gather_rows(*given, kept, means, sums, entries=planes.numel())
    else:
        count = positions.shape[1] * length
        strides = (channels * count, count) if order == "examples" else (count, batch * count)
        _gather(*given, kept.view(-1), *strides, means, sums, entries=planes.numel())
    return kept, means, sums


@parallel
def _gather(planes, numbers, length, weights, level, kept, example, channel, means, sums, tasks):
    batch, channels, _ = planes.shape
    count = numbers.shape[1] * length
    for task in prange(tasks):
        for number in share(task, tasks, batch * channels):
            n = number // channels
            c = number - n * channels
            start = n * example + c * channel
            _one(
                planes[n, c], numbers[n if len(numbers) > 1 else 0], length, weights, level,
                kept[start : start + count], means[n, c : c + 1], sums[n, c : c + 1],
            )  # fmt: skip


@parallel
def _gather_rows(planes, numbers, length, weights, level, kept, means, sums, tasks):
    batch, channels, _ = planes.shape
    count = numbers.shape[1] * length
    blocks = (channels + TOGETHER - 1) // TOGETHER
    for task in prange(tasks):
        some = np.empty((TOGETHER, count), planes.dtype)
        for number in share(task, tasks, batch * blocks):
            n = number // blocks
            first = (number - n * blocks) * TOGETHER
            last = min(channels, first + TOGETHER)
            for c in range(first, last):
                _one(
                    planes[n, c], numbers[n if len(numbers) > 1 else 0], length, weights, level, some[c - first],
                    means[n, c : c + 1], sums[n, c : c + 1],
                )  # fmt: skip
            for s in range(count):
                _copy(some[: last - first, s], kept[n, s, first:last])


@function
def _one(plane, numbers, length, weights, level, out, mean, sum_):
    """Gather from one plane."""
    if level:
        mean[0] = total(plane) / len(plane)
    if length == 1:
        for r in range(len(numbers)):
            out[r] = plane[uint64(numbers[r])]
    else:
        each, first = uint64(length), uint64(0)
        for r in range(len(numbers)):
            start = uint64(numbers[r]) * each  # numba does not look whether these are negative
            for j in range(each):
                out[first + j] = plane[start + j]
            first += each
    if level < 2:
        return
    middle = mean[0]
    for i in range(len(out)):
        out[i] -= middle
    sum_[0] = dot(out, weights)


@function
def _copy(values, out):
    for i in range(len(out)):
        out[i] = values[i]
