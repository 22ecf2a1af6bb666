"""Stochastic rounding of blocks by numba: see :mod:`.encode`."""

from functools import cache

import numpy as np
import torch
from numba import int32, prange, uint64
from torch import Tensor

from .encode import room_for
from .instructions_numba import as_bytes, at, beyond, bits_of, both, differ, number_of, part_of, right_signed
from .jit import function, numbers, parallel, share
from .levels import factors
from .memory_numba import loaded
from .noise import BLOCK, start
from .planes_numba import Form
from .rounding_numba import round_block, round_spoilt_block


def encode(values, seed, first, bits, block, dithered) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    codes, scales = room_for(values, bits, block)
    _encode(
        *(values, values.dtype, codes, scales, uint64(start(seed)), first, bits, block),
        *_constants(scales.dtype, bits, dithered), entries=values.numel(), room=(block, scales.dtype),
    )  # fmt: skip
    return codes, scales


def encode_normalised(values, mean, rstd, seed, bits) -> tuple[Tensor, Tensor]:
    """The same bits as the reference's."""
    source, form = values.reshape(1, -1), Form.of(values.shape, len(mean))
    codes, scales = room_for(source, bits, BLOCK)
    _encode_normalised(
        *(source, values.dtype, form.spread(mean), form.spread(rstd), form.rows, form.planes, form.size),
        *(codes, scales, uint64(start(seed)), bits, *_constants(scales.dtype, bits, True)),
        entries=values.numel(), room=(BLOCK, scales.dtype),
    )  # fmt: skip
    return codes, scales


@cache
def _constants(dtype: torch.dtype, bits: int, dithered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and integers that blocks need whose scales have that dtype; they are not to be changed."""
    whole, spoilt = factors(bits, dithered)
    shift, integer = (31, np.int32) if dtype == torch.float32 else (63, np.int64)
    integers = np.array([shift, np.iinfo(integer).max, np.iinfo(integer).min], integer)
    return numbers([whole, np.nan if spoilt is None else spoilt, torch.finfo(dtype).max / 2, 1, 0], dtype), integers


@parallel
def _encode(source, kind, codes, scales, start, first, bits, block, numbers, integers, room, words, tasks):
    entries, blocks, nbytes = source.shape[1], scales.shape[1], codes.shape[1]
    for task in prange(tasks):
        x, levels = part_of(room, task), as_bytes(part_of(words, task))
        for number in share(task, tasks, len(scales) * blocks):
            row = number // blocks
            place = number - row * blocks
            size = min(block, entries - place * block)
            _encode_block(
                loaded(at(source, row * entries + place * block), size, kind, x), size, start, first + number, bits,
                at(numbers, 0), at(integers, 0), levels, at(scales, 2 * number),
                at(codes, row * nbytes + place * ((block + 7) // 8 * bits)),
            )  # fmt: skip


@parallel
def _encode_normalised(
    source, kind, mean, rstd, rows, planes, size, codes, scales, start, bits, numbers, integers, room, words, tasks
):
    for task in prange(tasks):
        given, levels = part_of(room, task), as_bytes(part_of(words, task))
        x = beyond(given, BLOCK)
        for number in share(task, tasks, scales.shape[1]):
            first, end = number * BLOCK, min(source.size, (number + 1) * BLOCK)
            values, here = loaded(at(source, first), end - first, kind, given), first
            while here < end:
                row, entry = here // (planes * size), here % (planes * size)
                plane, channel = entry // size, row // rows * planes + entry // size
                some, out = beyond(values, here - first), beyond(x, here - first)
                means, rstds = at(mean, channel), at(rstd, channel)
                if size == 1:
                    stop = min(end, here + planes - plane)
                    _columns(some, stop - here, means, rstds, out)
                else:
                    stop = min(end, here + size - entry % size)
                    _plane(some, stop - here, means[0], rstds[0], out)
                here = stop
            _encode_block(
                x, end - first, start, number, bits, at(numbers, 0), at(integers, 0), levels, at(scales, 2 * number),
                at(codes, number * (BLOCK // 8 * bits)),
            )  # fmt: skip


@function
def _columns(x, count, mean, rstd, out):
    for i in range(count):
        out[i] = (x[i] - mean[i]) * rstd[i]


@function
def _plane(x, count, mean, rstd, out):
    for i in range(count):
        out[i] = (x[i] - mean) * rstd


@function
def _encode_block(x, size, start, number, bits, numbers, integers, levels, scale, packed):
    """Scales and packed codes of the entries of one block."""
    good = _scales(x, size, numbers, integers, scale)
    least, step = scale[0], abs(scale[1])
    rule = (least, numbers[3] / step if step > numbers[4] else numbers[4])
    top = int32((1 << bits) - 1)
    if good:
        round_block(x, size, rule, top, start, number, bits, levels, packed)
    else:
        round_spoilt_block(x, size, rule, int32(top - 1), numbers[2], start, number, bits, levels, packed)


@function
def _scales(x, size, numbers, integers, scale):
    """Offset and step of a block; whether all entries are finite."""
    shift, most = integers[0], integers[1]
    low, high = most, integers[2]
    for i in range(size):  # integers in the order of the numbers: minima of these are found many at a time
        bits = bits_of(x[i])
        key = differ(bits, both(right_signed(bits, shift), most))
        low, high = min(low, key), max(high, key)
    least = number_of(differ(low, both(right_signed(low, shift), most)))
    largest = number_of(differ(high, both(right_signed(high, shift), most)))
    limit = numbers[2]
    good = least >= -limit and largest <= limit
    if good:
        step = (largest - least) * numbers[0]
    else:
        least, step = _narrower(x, size, numbers)
    if np.isinf(numbers[3] / abs(step)):
        step = np.copysign(numbers[4], step)
    scale[0], scale[1] = least + numbers[4], step
    return good


@function
def _narrower(x, size, numbers):
    """Least finite entry, and the step of a block in which others are not finite."""
    least, largest = numbers[3] / numbers[4], -(numbers[3] / numbers[4])
    for i in range(size):
        if abs(x[i]) <= numbers[2]:
            least, largest = min(least, x[i]), max(largest, x[i])
    if least > largest:
        least = largest = numbers[4]
    if np.isnan(numbers[1]):
        return least, numbers[1]
    return least, -((largest - least) * numbers[1])
