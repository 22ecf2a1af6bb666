"""Stochastic rounding to a type of 16 bits by numba: see :mod:`.stochastic_cast`."""

import numpy as np
import torch
from numba import prange, uint32, uint64
from torch import Tensor

from .instructions_numba import add, both, either, right
from .jit import array, function, parallel, share
from .noise import BLOCK, start
from .noise_numba import words

_SIZE, _INFINITE, _SIGNIFICAND = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FFFFF)
_HALF, _QUIET = np.uint32(0xFFFF), np.uint32(0x40)
_SMALLEST, _LEAST = np.uint32(0x38800000), np.uint32(0x800000)  # normal numbers of half and of single precision


def narrow(values, seed, first, dtype) -> Tensor:
    """The same bits as the reference's."""
    result = torch.empty(values.shape, dtype=dtype)
    source, half = array(values.reshape(-1)).view(np.uint32), dtype == torch.float16
    _narrow(source, result.view(-1), half, uint64(start(seed)), first, entries=len(source))
    return result


@function
def _bfloat16(x, pairs, shift, out):
    for i in range(len(x)):
        bits = x[i]
        if both(bits, _INFINITE) == _INFINITE:
            out[i] = either(right(bits, uint32(16)), _QUIET if both(bits, _SIGNIFICAND) else uint32(0))
        else:
            out[i] = right(add(bits, both(right(pairs[i], shift), _HALF)), uint32(16))


@function
def _float16(x, pairs, shift, out):
    for i in range(len(x)):
        size, noise = both(x[i], _SIZE), both(right(pairs[i], shift), _HALF)
        if size >= _INFINITE:
            cut = uint32(0x7E00) if size > _INFINITE else uint32(0x7C00)
        elif size >= _SMALLEST:
            cut = uint32(min(right(add(size, right(noise, uint32(3))), uint32(13)) - (112 << 10), 0x7C00))
        else:
            exponent = np.int64(right(size, uint32(23)))
            dropped = 126 - exponent if exponent else 125
            significand = add(both(size, _SIGNIFICAND), _LEAST if size >= _LEAST else uint32(0))
            significand = right(significand, uint32(max(0, min(31, dropped - 24))))
            dropped = min(24, dropped)
            cut = right(add(significand, right(uint32(noise << 8), uint32(24 - dropped))), uint32(dropped))
        out[i] = either(cut, both(right(x[i], uint32(16)), uint32(0x8000)))


@parallel
def _narrow(source, result, half, start, first, tasks):
    for task in prange(tasks):
        pairs = np.empty(BLOCK // 2, np.uint32)
        for number in share(task, tasks, (len(source) + BLOCK - 1) // BLOCK):
            some = slice(number * BLOCK, (number + 1) * BLOCK)
            round_block(source[some], start, first + number, half, pairs, result[some])


@function
def round_block(x, start, number, half, pairs, out):
    """Round the bits of one block of numbers; ``pairs`` is room for half as many words of noise."""
    middle = (len(x) + 1) // 2
    words(start, number, pairs[:middle])
    if half:
        _float16(x[:middle], pairs, uint32(0), out[:middle])
        _float16(x[middle:], pairs, uint32(16), out[middle:])
    else:
        _bfloat16(x[:middle], pairs, uint32(0), out[:middle])
        _bfloat16(x[middle:], pairs, uint32(16), out[middle:])
