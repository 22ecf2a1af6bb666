"""Stretches of planes by numba: see :mod:`.stretches`."""

from numba import prange, uint64
from torch import Tensor

from .jit import function, parallel, tasks
from .memory_numba import array
from .stretches import empty


def gather_stretches(planes: Tensor, starts: Tensor, length: int, channels_first: bool) -> Tensor:
    """The same bits as the reference's."""
    (batch, channels, _), (several, _, count) = planes.shape, starts.shape
    result = empty(planes, starts, length, channels_first)
    if not result.numel():
        return result
    row = count * length
    strides = (
        (row, several * batch * row, batch * row) if channels_first else (channels * several * row, several * row, row)
    )
    _gather(
        array(planes.contiguous()), array(starts.contiguous()), length, array(result.view(-1)), *strides,
        min(batch * channels, tasks(result.numel())),
    )  # fmt: skip
    return result


@parallel
def _gather(planes, starts, length, result, example, channel, entry, tasks):
    batch, channels, _ = planes.shape
    several, _, count = starts.shape
    every = batch * channels
    for task in prange(tasks):
        for number in range(task * every // tasks, (task + 1) * every // tasks):
            n = number // channels
            c = number - n * channels
            plane = planes[n, c]
            for a in range(several):
                begin = starts[a, n if starts.shape[1] > 1 else 0]
                first = n * example + c * channel + a * entry
                _row(plane, begin, length, result[first : first + count * length])


@function
def _row(plane, begin, length, out):
    each, first = uint64(length), uint64(0)
    for r in range(len(begin)):
        if begin[r] < 0:
            for j in range(each):
                out[first + j] = 0
        else:
            start = uint64(begin[r])  # numba does not look whether these are negative
            for j in range(each):
                out[first + j] = plane[start + j]
        first += each
