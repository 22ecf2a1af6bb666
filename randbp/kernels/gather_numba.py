"""Kept positions of planes by numba: see :mod:`.gather`."""

import torch
from numba import prange, uint64
from torch import Tensor

from .gather import gather_planes as fused
from .gather import results
from .jit import contracting, function, parallel, share


def gather_planes(planes, numbers, length, order, what) -> tuple[Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    if planes.dtype not in (torch.float32, torch.float64):
        return fused.reference(planes, numbers, length, order, what)
    kept, means = results(planes, numbers, length, order, what)
    level, (batch, channels, _) = ("entries", "means", "deviations").index(what), planes.shape
    strides = (channels, 1) if order == "examples" else (1, batch)
    _gather(planes, numbers, length, level, kept.flatten(0, 1), *strides, means, entries=planes.numel())
    return kept, means


@parallel
def _gather(planes, numbers, length, level, kept, example, channel, means, tasks):
    batch, channels, _ = planes.shape
    for task in prange(tasks):
        for number in share(task, tasks, batch * channels):
            n = number // channels
            c = number - n * channels
            some, out = numbers[n if len(numbers) > 1 else 0], kept[n * example + c * channel]
            _one(planes[n, c], some, length, level, out, means[n, c : c + 1])


@function
def _one(plane, numbers, length, level, out, mean):
    """Gather from one plane."""
    if level:
        mean[0] = _total(plane) / len(plane)
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
    if level == 2:
        middle = mean[0]
        for i in range(len(out)):
            out[i] -= middle


@contracting
def _total(values):
    result = values.dtype.type(0)
    for i in range(len(values)):
        result += values[i]
    return result
