"""Tensors as numba's kernels see them: arrays, those of 16 bits as their bits; single precision within."""

import numpy as np
import torch
from numba import int32, types, uint16, uint32
from numba.extending import overload
from torch import Tensor

from .casts_numba import bits_of, number_of
from .jit import function
from .pointers_numba import as_unsigned
from .words_numba import add, both, either, left, right

FLOAT, BFLOAT16, FLOAT16 = 0, 1, 2
"""What the entries of an array are: its own numbers, or the bits of others."""

_13, _16 = uint32(13), uint32(16)
_SIGN, _SIZE, _EXPONENT = uint32(0x8000), uint32(0x7FFF), uint32(0x7F800000)
_NORMAL, _SPECIAL, _UP, _FROM = uint32(0x0400 << 13), uint32(0x7C00 << 13), uint32(112 << 23), uint32(113 << 23)
_SMALLEST = np.float32(2.0**-14)
_ONE, _UNDER_HALF, _ALL = uint32(1), uint32(0x7FFF), uint32(0x7FFFFFFF)


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory, ``uint16`` for numbers of 16 bits; the tensor must outlive it."""
    tensor = tensor.detach() if tensor.requires_grad else tensor
    return (tensor.view(torch.uint16) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def kind(dtype: torch.dtype) -> int:
    """Which of the kinds a dtype's entries are."""
    return {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}.get(dtype, FLOAT)


def storable(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a tensor that :func:`stored` can write for one of ``dtype``: single precision for half."""
    return torch.float32 if dtype == torch.float16 else dtype


def numpy_dtype(dtype: torch.dtype) -> type:
    """Of the array that a single- or double-precision tensor is.

    Example:
        >>> numpy_dtype(torch.float64)
        <class 'numpy.float64'>
    """
    return np.float64 if dtype == torch.float64 else np.float32


def _loaded(source, size, kind, out):
    """Entries of an array of that kind in the precision of ``out``: pointers, to where they are or to a copy there."""


@overload(_loaded, jit_options={"error_model": "numpy"})
def _load_as_needed(source, size, kind, out):
    if source == out:
        return lambda source, size, kind, out: source
    if source.dtype == types.uint16:

        def from_bits(source, size, kind, out):
            bits = as_unsigned(out)
            if kind == BFLOAT16:
                for i in range(size):
                    bits[i] = left(uint32(source[i]), _16)
            else:
                for i in range(size):
                    out[i] = _of_half(uint32(source[i]))
            return out

        return from_bits

    def converted(source, size, kind, out):
        for i in range(size):
            out[i] = source[i]
        return out

    return converted


@function
def loaded(source, size, kind, out):
    """Entries of an array of that kind in the precision of ``out``: pointers, to where they are or to a copy there."""
    return _loaded(source, size, kind, out)


def _buffer_of(out, room):
    """Where entries of an array are made: there, if they have its precision, else in a buffer."""


@overload(_buffer_of)
def _choose_buffer(out, room):
    return (lambda out, room: out) if out == room else (lambda out, room: room)


@function
def buffer_of(out, room):
    """Where entries of an array are made (pointers): there, if it has their precision, else in a buffer."""
    return _buffer_of(out, room)


def _stored(values, size, out):
    """Move entries that were made in a buffer, if they were."""


@overload(_stored)
def _store_as_needed(values, size, out):
    if values == out:
        return lambda values, size, out: None

    def round_to_bits(values, size, out):
        bits = as_unsigned(values)
        for i in range(size):
            each = bits[i]
            rounded = right(add(add(each, _UNDER_HALF), both(right(each, _16), _ONE)), _16)
            out[i] = uint16(0x7FC0) if both(each, _ALL) > _EXPONENT else uint16(rounded)

    return round_to_bits


def _copied(values, size, out):
    """Move entries to where they belong."""


@overload(_copied)
def _copy_as_needed(values, size, out):
    if values != out:
        return lambda values, size, out: _stored(values, size, out)

    def copy(values, size, out):
        for i in range(size):
            out[i] = values[i]

    return copy


@function
def copied(values, size, out):
    """Move entries from a buffer to where they belong, whatever their precision."""
    _copied(values, size, out)


@function
def stored(values, size, out):
    """Move entries made in a :func:`buffer <buffer_of>` to where they belong, rounded to the nearest bfloat16."""
    _stored(values, size, out)


@function
def _of_half(half):
    """The number whose half-precision bits these are."""
    rest = left(both(half, _SIZE), _13)
    normal, small = add(rest, _UP), number_of(int32(add(rest, _FROM))) - _SMALLEST
    infinite = either(rest, _EXPONENT)
    size = normal if rest >= _NORMAL else uint32(bits_of(small))
    return number_of(int32(either(left(both(half, _SIGN), _16), infinite if rest >= _SPECIAL else size)))
