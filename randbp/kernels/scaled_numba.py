"""Entries of each channel times a number, plus another one, by numba: see :mod:`.scaled`."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .instructions_numba import multiply_add
from .jit import function, numbers, parallel, share

_FEW = 64
"""Entries of a channel that are too few for a loop of their own."""


def scaled(values: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """The same bits as the reference's."""
    result = torch.empty(values.shape)
    _scaled(values, scale, shift, relu, numbers([0], torch.float32), result, entries=values.numel())
    return result


@parallel
def _scaled(source, scale, shift, relu, zeros, result, tasks):
    rows, channels, size = source.shape
    few = size < _FEW
    count = rows if few else rows * channels
    for task in prange(tasks):
        length = channels * size if few else 1
        a, b = np.empty(length, np.float32), np.empty(length, np.float32)
        if few:
            for i in range(length):
                a[i], b[i] = scale[i // size], shift[i // size]
        for number in share(task, tasks, count):
            if few:
                _each(source[number].ravel(), a, b, relu, zeros, result[number].ravel())
            else:
                row, channel = number // channels, number % channels
                _all(source[row, channel], scale[channel], shift[channel], relu, zeros, result[row, channel])


@function
def _each(x, a, b, relu, zeros, y):
    zero = zeros[0]
    for i in range(len(x)):
        value = multiply_add(x[i], a[i], b[i])
        y[i] = zero if relu and value < zero else value


@function
def _all(x, a, b, relu, zeros, y):
    zero = zeros[0]
    for i in range(len(x)):
        value = multiply_add(x[i], a, b)
        y[i] = zero if relu and value < zero else value
