"""Masks of one bit per entry by numba: see :mod:`.mask_bits`."""

from collections.abc import Callable
from functools import cache
from math import isnan

import numpy as np
import torch
from numba import prange, uint8
from torch import Tensor

from .instructions_numba import at, beyond, both, differ, either, left, part_of, right
from .jit import array, inlined, numbers, parallel, part, share
from .levels import scale_dtype
from .mask_bits import BLOCK, mask_bytes
from .memory_numba import buffer_of, loaded, stored

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes."""

_NONE = np.empty(0, np.float32)


def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """The same bits as the reference's."""
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8)
    if test == "true":
        _pack(values.view(torch.uint8), bits)
    else:
        source = values.contiguous().view(_INTEGERS[values.itemsize])
        _inside(source, bits, numbers=np.array(_interval(values.dtype, test, low, high), array(source).dtype))
    return bits


def _interval(dtype: torch.dtype, test: str, low: float, high: float) -> list[int]:
    """The least and the largest :func:`key <_compared>`, what makes keys, and 1 if all other keys pass instead."""
    integers = _INTEGERS[dtype.itemsize]
    largest, outside = torch.iinfo(integers).max, int(test == "not_under")
    if isnan(low) or isnan(high):
        return [1, 0, largest, 0, outside]
    bits = torch.tensor([low, high, torch.inf, -torch.inf], dtype=dtype).view(integers).tolist()
    below, above, top, bottom = ((value ^ largest) if value < 0 else value for value in bits)
    down, up = ((-1, 0) if end in (-1, 0) else (end, end) for end in (below, above))  # -0 and 0 are equal
    ends = {
        "over": (down[1] + 1, top),
        "not_under": (bottom, down[1]),
        "between": (down[1] + 1, up[0] - 1),
        "within": (down[0], up[1]),
    }[test]
    return [*ends, largest, 0, outside]


def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's numbers and the reference's bits."""
    if not _is_pytorchs(values.dtype):
        return torch.relu(values), inside(values, "not_under", 0.0, 0.0)
    return _fused_relu(values)


def _fused_relu(values: Tensor) -> tuple[Tensor, Tensor]:
    result, bits = torch.empty(len(values), dtype=values.dtype), torch.empty(mask_bytes(len(values)), dtype=torch.uint8)
    _relu(values, bits, result, numbers([0], values.dtype))
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
    _read(mask.view(torch.uint8), bits, mask.view(torch.uint8))
    return mask


def masked(values: Tensor, bits: Tensor, factor: float, other: float | None) -> Tensor:
    """The same bits as the reference's."""
    source = values.contiguous()
    result = torch.empty_like(source)
    if other is None and factor == 1:  # chosen as integers: nothing happens to what is kept
        integers = _INTEGERS[values.itemsize]
        _keep(source.view(integers), bits, result.view(integers))
    else:
        factors = numbers([factor, 0 if other is None else other, other is None], scale_dtype(values.dtype))
        _scale(source, bits, result, factors, values.dtype)
    return result


def _on_stretches(each: Callable[..., None]) -> Callable[..., None]:
    """Make the kernel that works on all stretches: entries of a block whose bits are the ``k``-th of their bytes.

    It takes flat tensors of entries, bits and results, an array of numbers, and the results' dtype.
    """

    @parallel
    def kernel(source, bits, result, numbers, kind, room, words, tasks):
        for task in prange(tasks):
            buffer = part_of(room, task)
            for number in share(task, tasks, (len(source) + BLOCK - 1) // BLOCK):
                first = number * BLOCK
                size = min(BLOCK, len(source) - first)
                length = (size + 7) // 8
                for k in range(8):
                    start, count = first + k * length, min(length, size - k * length)
                    x, y, some = at(source, start), at(result, start), at(bits, first // 8)
                    each(x, count, some, k, y, at(numbers, 0), kind, buffer)

    def run(source, bits, result=None, numbers=_NONE, dtype=torch.float32):
        kernel(
            *(source, bits, bits if result is None else result, numbers, dtype),
            entries=len(source), room=(BLOCK // 8, scale_dtype(dtype)),
        )  # fmt: skip

    return run


@inlined
def _with_bit(byte, k, bit):
    """A byte with its bit ``k``; lower ones are put first."""
    return either(left(uint8(bit), uint8(k)), byte if k else uint8(0))


@part
def _packed(x, count, bits, k, y, numbers, kind, buffer):
    for j in range(count):
        bits[j] = _with_bit(bits[j], k, x[j])


@part
def _compared(x, count, bits, k, y, ends, kind, buffer):
    """Set bits where the entries' keys, integers in the order of the numbers, lie between two others.

    (Comparisons as numbers differ in how they treat NaN, and there are no numbers of 16 bits.)
    """
    low, high, largest, zero, outside = ends[0], ends[1], ends[2], ends[3], uint8(ends[4])
    for j in range(count):
        key = differ(x[j], largest if x[j] < zero else zero)
        bits[j] = _with_bit(bits[j], k, (uint8(key >= low) & uint8(key <= high)) ^ outside)


@part
def _positive(x, count, bits, k, y, zeros, kind, buffer):
    zero = zeros[0]
    for j in range(count):
        value = x[j]
        y[j] = zero if value < zero else value
        bits[j] = _with_bit(bits[j], k, uint8(not (value <= zero)))


@part
def _bit(x, count, bits, k, y, numbers, kind, buffer):
    for j in range(count):
        y[j] = both(right(bits[j], uint8(k)), uint8(1))


@part
def _kept(x, count, bits, k, y, numbers, kind, buffer):
    for j in range(count):
        y[j] = x[j] & -((bits[j] >> k) & 1)


@part
def _scaled(x, count, bits, k, y, factors, kind, buffer):
    factor, other, drops = factors[0], factors[1], factors[2]
    values, out = loaded(x, count, kind, buffer), buffer_of(y, beyond(buffer, BLOCK // 8))
    if drops:
        for j in range(count):
            out[j] = values[j] * factor if (bits[j] >> k) & 1 else other
    else:
        for j in range(count):
            out[j] = values[j] * (factor if (bits[j] >> k) & 1 else other)
    stored(out, count, kind, y)


_pack, _inside, _relu, _read, _keep, _scale = map(_on_stretches, (_packed, _compared, _positive, _bit, _kept, _scaled))
