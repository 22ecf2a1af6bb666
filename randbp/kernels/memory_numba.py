"""Tensors as numba's kernels see them: arrays, those of 16 bits as their bits; single precision within."""

import numpy as np
import torch
from numba import uint16, uint32
from torch import Tensor

from .jit import function

FLOAT, BFLOAT16, FLOAT16 = 0, 1, 2
"""What the entries of an array are: its own numbers, or the bits of others."""


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory, ``uint16`` for numbers of 16 bits; the tensor must outlive it."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def kind(dtype: torch.dtype) -> int:
    """Which of the kinds a dtype's entries are."""
    return {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}.get(dtype, FLOAT)


def storable(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a tensor that :func:`store` can write for one of ``dtype``: single precision for half."""
    return torch.float32 if dtype == torch.float16 else dtype


def numpy_dtype(dtype: torch.dtype) -> type:
    """Of the array that a single- or double-precision tensor is.

    Example:
        >>> numpy_dtype(torch.float64)
        <class 'numpy.float64'>
    """
    return np.float64 if dtype == torch.float64 else np.float32


@function
def load(source, kind, out):
    """Copy entries of an array of that kind into a buffer of single or double precision."""
    if kind == FLOAT:
        for i in range(len(source)):
            out[i] = source[i]
        return
    bits = out.view(np.uint32)
    if kind == BFLOAT16:
        for i in range(len(source)):
            bits[i] = uint32(source[i]) << uint32(16)
        return
    for i in range(len(source)):
        _from_half(uint32(source[i]), bits, out, i)


@function
def _from_half(half, bits, out, i):
    sign, rest = (half & uint32(0x8000)) << uint32(16), (half & uint32(0x7FFF)) << uint32(13)
    if rest >= uint32(0x7C00 << 13):  # infinite or NaN
        bits[i] = uint32(sign | rest | uint32(0x7F800000))
    elif rest >= uint32(0x0400 << 13):
        bits[i] = uint32(sign | (rest + uint32(112 << 23)))
    else:  # below the smallest normal number
        bits[i] = uint32(rest + uint32(113 << 23))
        out[i] -= np.float32(2.0**-14)
        bits[i] |= sign


@function
def store(values, kind, out):
    """Copy a buffer into an array of that kind, rounded to the nearest, of two to the even one."""
    if kind != BFLOAT16:
        for i in range(len(values)):
            out[i] = values[i]
        return
    bits = values.view(np.uint32)
    for i in range(len(values)):
        each = uint32(bits[i])
        rounded = (each + uint32(0x7FFF) + ((each >> uint32(16)) & uint32(1))) >> uint32(16)
        out[i] = uint16(0x7FC0) if (each & uint32(0x7FFFFFFF)) > uint32(0x7F800000) else uint16(rounded)
