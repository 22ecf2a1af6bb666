"""Entries of each channel times a number, plus another one, by numba: see :mod:`.scaled`."""

from typing import Any

import numpy as np
import torch
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from .jit import function, parallel, tasks
from .memory_numba import array

_FEW = 64
"""Entries of a channel that are too few for a loop of their own."""


def scaled(values: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """The same bits as the reference's."""
    source = values.contiguous()
    result = torch.empty(source.shape)
    if result.numel():
        factors = array(scale.contiguous()), array(shift.contiguous())
        _scaled(array(source), *factors, relu, np.zeros(1, np.float32), array(result), tasks(source.numel()))
    return result


def _operation() -> Any:
    @intrinsic
    def operation(typing_context, x, a, b):
        return types.float32(types.float32, types.float32, types.float32), _instruction

    def _instruction(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return operation


_multiply_add = _operation()
"""``x a + b``, rounded once, by the processor's instruction."""


@parallel
def _scaled(source, scale, shift, relu, zeros, result, tasks):
    rows, channels, size = source.shape
    few = size < _FEW
    count = rows if few else rows * channels
    each = (count + tasks - 1) // tasks
    for task in prange(tasks):
        length = channels * size if few else 1
        a, b = np.empty(length, np.float32), np.empty(length, np.float32)
        if few:
            for i in range(length):
                a[i], b[i] = scale[i // size], shift[i // size]
        for number in range(task * each, min(count, (task + 1) * each)):
            if few:
                _each(source[number].ravel(), a, b, relu, zeros, result[number].ravel())
            else:
                row, channel = number // channels, number % channels
                _all(source[row, channel], scale[channel], shift[channel], relu, zeros, result[row, channel])


@function
def _each(x, a, b, relu, zeros, y):
    zero = zeros[0]
    for i in range(len(x)):
        value = _multiply_add(x[i], a[i], b[i])
        y[i] = zero if relu and value < zero else value


@function
def _all(x, a, b, relu, zeros, y):
    zero = zeros[0]
    for i in range(len(x)):
        value = _multiply_add(x[i], a, b)
        y[i] = zero if relu and value < zero else value
