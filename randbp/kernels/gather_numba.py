"""Kept positions of planes by numba: see :mod:`.gather`."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from . import gather
from .jit import function, parallel, tasks
from .memory_numba import array
from .sums_numba import dot, total

TOGETHER = 16
"""Channels that are written side by side, where these are innermost."""


def gather_planes(
    planes: Tensor, numbers: Tensor, length: int, weights: Sequence[float], order: str, what: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    if planes.dtype not in (torch.float32, torch.float64):
        return gather.gather_planes.reference(planes, numbers, length, weights, order, what)
    batch, channels, _ = planes.shape
    count = numbers.shape[1] * length
    kept = gather.empty(planes, count, order)
    means = planes.new_zeros(batch, channels)
    sums = torch.zeros_like(means)
    if not planes.numel():
        return kept, means, sums
    factors: np.ndarray = np.repeat(np.array(weights, array(means).dtype), length)
    level = ("entries", "means", "deviations").index(what)
    fixed = array(planes.contiguous()), array(numbers.contiguous()), length, factors, level
    parts = tasks(planes.numel())
    if order == "rows":
        _gather_rows(*fixed, array(kept), array(means), array(sums), TOGETHER, parts)
    else:
        strides = (channels * count, count) if order == "examples" else (count, batch * count)
        _gather(*fixed, array(kept.view(-1)), *strides, array(means), array(sums), parts)
    return kept, means, sums


@parallel
def _gather(planes, numbers, length, weights, level, kept, example, channel, means, sums, tasks):
    batch, channels, _ = planes.shape
    count = numbers.shape[1] * length
    every = batch * channels
    for task in prange(tasks):
        for number in range(task * every // tasks, (task + 1) * every // tasks):
            n = number // channels
            c = number - n * channels
            start = n * example + c * channel
            _one(
                planes[n, c], numbers[n if len(numbers) > 1 else 0], length, weights, level,
                kept[start : start + count], means[n, c : c + 1], sums[n, c : c + 1],
            )  # fmt: skip


@parallel
def _gather_rows(planes, numbers, length, weights, level, kept, means, sums, together, tasks):
    batch, channels, _ = planes.shape
    count = numbers.shape[1] * length
    blocks = (channels + together - 1) // together
    every = batch * blocks
    for task in prange(tasks):
        some = np.empty((together, count), planes.dtype)
        for number in range(task * every // tasks, (task + 1) * every // tasks):
            n = number // blocks
            first = (number - n * blocks) * together
            last = min(channels, first + together)
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
