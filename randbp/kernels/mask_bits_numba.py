"""Masks of one bit per entry by numba: see :mod:`.mask_bits`."""

from functools import cache
from math import isnan

import numpy as np
import torch
from numba import prange, uint8
from torch import Tensor

from .instructions_numba import at, beyond, differ, part_of
from .jit import array, function, inlined, numbers, parallel, share
from .levels import scale_dtype
from .mask_bits import BLOCK, mask_bytes
from .memory_numba import buffer_of, loaded, stored

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""


def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """The same bits as the reference's."""
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8)
    source = values.contiguous().view(_INTEGERS[values.itemsize])
    ends, outside = _interval(values.dtype, test, low, high)
    _inside(source, np.array(ends, array(source).dtype), outside, bits, entries=len(values))
    return bits


def _interval(dtype: torch.dtype, test: str, low: float, high: float) -> tuple[list[int], bool]:
    """Between which integers a number's :func:`key <_compare>` passes, ends included, or fails; what makes the key."""
    integers = _INTEGERS[dtype.itemsize]
    largest = torch.iinfo(integers).max
    key = [largest, 0]
    if test == "true" or isnan(low) or isnan(high):
        return [1, int(test == "true"), *key], test == "not_under"
    bits = torch.tensor([low, high, torch.inf, -torch.inf], dtype=dtype).view(integers).tolist()
    below, above, top, bottom = ((value ^ largest) if value < 0 else value for value in bits)
    down, up = ((-1, 0) if end in (-1, 0) else (end, end) for end in (below, above))  # -0 and 0 are equal
    ends = {
        "over": (down[1] + 1, top),
        "not_under": (bottom, down[1]),
        "between": (down[1] + 1, up[0] - 1),
        "within": (down[0], up[1]),
    }[test]
    return [*ends, *key], test == "not_under"


def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's numbers and the reference's bits."""
    if not len(values) or not _is_pytorchs(values.dtype):
        return torch.relu(values), inside(values, "not_under", 0.0, 0.0)
    return _fused_relu(values)


def _fused_relu(values: Tensor) -> tuple[Tensor, Tensor]:
    result, bits = torch.empty(len(values), dtype=values.dtype), torch.empty(mask_bytes(len(values)), dtype=torch.uint8)
    _relu(values, result, bits, numbers([0], values.dtype), entries=len(values))
    return result, bits


@cache
def _is_pytorchs(dtype: torch.dtype) -> bool:
    """Whether PyTorch's own kernel gives the same bits here, also of -0 and NaN, which processors treat differently."""
    if dtype not in (torch.float32, torch.float64):
        return False
    integers, width = (torch.int32, 31) if dtype == torch.float32 else (torch.int64, 63)
    ends = [torch.inf, 0.0, torch.finfo(dtype).tiny / 4, 1.0, torch.nan]
    values = torch.tensor(ends + [-end for end in ends], dtype=dtype).view(integers)
    values = torch.cat([values, values[4::5] - 1, values[4::5] + (1 << (width - 20))]).view(dtype)
    for count in (3, 1024, 4099):  # scalar loops, vectors, both
        x = values.repeat(-(-count // len(values)))[:count]
        if not torch.equal(torch.relu(x).view(integers), _fused_relu(x)[0].view(integers)):
            return False
    return True


def unmask(bits: Tensor, count: int) -> Tensor:
    """The same as the reference's."""
    mask = torch.empty(count, dtype=torch.bool)
    _unmask(bits, mask.view(torch.uint8), entries=count)
    return mask


def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """The same bits as the reference's."""
    source = values.contiguous()
    result = torch.empty_like(source)
    if other is None and factor == 1:  # chosen as integers: nothing happens to what is kept
        integers = _INTEGERS[values.itemsize]
        _keep(source.view(integers), bits, result.view(integers), entries=len(values))
    else:
        precise = scale_dtype(values.dtype)
        factors = numbers([factor, 0 if other is None else other], precise)
        _scale(
            *(source, values.dtype, bits, factors, other is None, result),
            entries=len(values), room=(BLOCK // 8, precise),
        )  # fmt: skip
    return result


@function
def _blocks(entries):
    return (entries + BLOCK - 1) // BLOCK


@function
def _stretch(number, k, entries):
    """Of the entries of a block whose bits are the ``k``-th of its bytes: the first, how many, and their first byte."""
    first = number * BLOCK
    size = min(BLOCK, entries - first)
    length = (size + 7) // 8
    return first + k * length, min(length, size - k * length), first // 8


@parallel
def _inside(source, ends, outside, bits, tasks):
    for task in prange(tasks):
        for number in share(task, tasks, _blocks(len(source))):
            for k in range(8):
                start, count, byte = _stretch(number, k, len(source))
                _compare(at(source, start), count, at(ends, 0), uint8(outside), k, at(bits, byte))


@function
def _compare(x, count, ends, outside, k, bits):
    """Set bit ``k`` of as many bytes as there are entries, where their keys, in the order of the numbers, lie between.

    (Comparisons as numbers differ in how they treat NaN, and there are no numbers of 16 bits.)
    """
    low, high, largest, zero = ends[0], ends[1], ends[2], ends[3]
    for j in range(count):
        key = differ(x[j], largest if x[j] < zero else zero)
        bits[j] = _with_bit(bits[j], k, (uint8(key >= low) & uint8(key <= high)) ^ outside)


@inlined
def _with_bit(byte, k, bit):
    """A byte with its bit ``k``; lower ones are put first."""
    return uint8(bit << k) | (byte if k else uint8(0))


@parallel
def _relu(source, result, bits, zeros, tasks):
    for task in prange(tasks):
        for number in share(task, tasks, _blocks(len(source))):
            for k in range(8):
                start, count, byte = _stretch(number, k, len(source))
                _positive(at(source, start), count, zeros[0], k, at(result, start), at(bits, byte))


@function
def _positive(x, count, zero, k, y, bits):
    for j in range(count):
        value = x[j]
        y[j] = zero if value < zero else value
        bits[j] = _with_bit(bits[j], k, uint8(not (value <= zero)))


@parallel
def _unmask(bits, mask, tasks):
    for task in prange(tasks):
        for number in share(task, tasks, _blocks(len(mask))):
            for k in range(8):
                start, count, byte = _stretch(number, k, len(mask))
                _read(at(bits, byte), k, count, at(mask, start))


@function
def _read(bits, k, count, mask):
    for j in range(count):
        mask[j] = (bits[j] >> uint8(k)) & uint8(1)


@parallel
def _keep(source, bits, result, tasks):
    for task in prange(tasks):
        for number in share(task, tasks, _blocks(len(source))):
            for k in range(8):
                start, count, byte = _stretch(number, k, len(source))
                _kept(at(source, start), count, at(bits, byte), k, at(result, start))


@function
def _kept(x, count, bits, k, y):
    for j in range(count):
        y[j] = x[j] & -((bits[j] >> k) & 1)


@parallel
def _scale(source, kind, bits, factors, drops, result, room, words, tasks):
    for task in prange(tasks):
        buffer = part_of(room, task)
        for number in share(task, tasks, _blocks(len(source))):
            for k in range(8):
                start, count, byte = _stretch(number, k, len(source))
                out = at(result, start)
                x = loaded(at(source, start), count, kind, buffer)
                y = buffer_of(out, beyond(buffer, BLOCK // 8))
                _scaled(x, count, at(bits, byte), k, at(factors, 0), drops, y)
                stored(y, count, kind, out)


@function
def _scaled(x, count, bits, k, factors, drops, y):
    factor, other = factors[0], factors[1]
    if drops:
        for j in range(count):
            y[j] = x[j] * factor if (bits[j] >> k) & 1 else other
    else:
        for j in range(count):
            y[j] = x[j] * (factor if (bits[j] >> k) & 1 else other)
