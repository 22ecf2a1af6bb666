"""Numbers on equally spaced levels by numba: see :mod:`.grid_bits`."""

import numpy as np
import torch
from numba import int32, prange, uint64
from torch import Tensor

from .derivatives import FUNCTIONS
from .derivatives_numba import derivative
from .grid_bits import room_for, stretched
from .instructions_numba import as_bytes, as_floats, as_signed, at, beyond, both, part_of
from .jit import function, numbers, parallel, share
from .levels import scale_dtype
from .mask_bits_numba import inside, unmask
from .memory_numba import buffer_of, loaded, stored
from .noise import BLOCK, start
from .packing import packed_size
from .packing_numba import unpack_bytes
from .rounding_numba import round_block, round_spoilt_block

_EXPONENT, _LARGEST = int32(0x7F800000), np.finfo(np.float32).max


def to_grid(values, function, parameters, seed, first, bits, inverse, zero) -> Tensor:
    """The same bits as the reference's."""
    held, split = room_for(values, bits), packed_size(len(values), bits)
    spoilt = torch.zeros(-(-len(values) // BLOCK), dtype=torch.bool)
    rule = numbers([inverse, zero, 0, stretched(bits)[0], 2**bits - 1, 1], torch.float32)
    _to_grid(
        *(values, values.dtype, FUNCTIONS.index(function) if function else -1, numbers(parameters, torch.float32)),
        *(uint64(start(seed)), first, bits, rule, held, spoilt),
        entries=len(values), room=(BLOCK, torch.float32),
    )  # fmt: skip
    held[split:] = inside(spoilt, "true", 0.0, 0.0) if spoilt.numpy().any() else 0
    return held


@parallel
def _to_grid(source, kind, function, parameters, start, first, bits, rule, codes, spoilt, room, words, tasks):
    for task in prange(tasks):
        x, levels = part_of(room, task), as_bytes(part_of(words, task))
        for number in share(task, tasks, len(spoilt)):
            begin = number * BLOCK
            size = min(BLOCK, len(source) - begin)
            values = loaded(at(source, begin), size, kind, x)
            if function >= 0:
                derivative(values, size, function, at(parameters, 0), beyond(x, BLOCK))
                values = beyond(x, BLOCK)
            spoilt[number] = _encode_block(
                values, size, at(rule, 0), start, first + number, bits, levels, at(codes, begin // 8 * bits)
            )


@function
def _encode_block(x, size, rule, start, number, bits, levels, out):
    """Codes of the entries of one block, given by pointers; whether it is spoilt."""
    wrong, integers = int32(0), as_signed(x)
    for i in range(size):
        wrong |= int32(both(integers[i], _EXPONENT) == _EXPONENT)
    factor, zero, least, stretch, top = rule[0], rule[1], rule[2], rule[3], rule[4]
    if wrong:
        last, places = top - rule[5], (factor, zero, least, stretch)
        round_spoilt_block(x, size, places, last, _LARGEST, start, number, bits, levels, out)
    else:
        round_block(x, size, (factor, zero, least), top, start, number, bits, levels, out)
    return wrong != 0


def times_grid(values, held, bits, step, zero) -> Tensor:
    """The same bits as the reference's."""
    result, split = torch.empty(len(values), dtype=values.dtype), packed_size(len(values), bits)
    spoilt = unmask(held[split:], -(-len(values) // BLOCK))
    rule = numbers([step, zero, stretched(bits)[1], 2**bits - 1], torch.float32)
    _times_grid(
        *(values, values.dtype, held, spoilt, bits, rule, result),
        entries=len(values), room=(BLOCK, scale_dtype(values.dtype)),
    )  # fmt: skip
    return result


@parallel
def _times_grid(source, kind, codes, spoilt, bits, rule, result, room, words, tasks):
    for task in prange(tasks):
        x, some = part_of(room, task), part_of(words, task)
        levels, factors = as_bytes(some), as_floats(beyond(some, BLOCK))
        for number in share(task, tasks, len(spoilt)):
            begin = number * BLOCK
            size, out = min(BLOCK, len(source) - begin), at(result, begin)
            _decode_block(at(codes, begin // 8 * bits), size, bits, spoilt[number], at(rule, 0), levels, factors)
            product = buffer_of(out, beyond(x, BLOCK))
            _times(loaded(at(source, begin), size, kind, x), size, factors, product)
            stored(product, size, kind, out)


@function
def _times(x, size, factors, out):
    for i in range(size):
        out[i] = x[i] * factors[i]


@function
def _decode_block(packed, size, bits, spoilt, rule, levels, out):
    unpack_bytes(packed, (size + 7) // 8, bits, levels)
    step, zero, stretch, top = rule[0], rule[1], rule[2], int32(rule[3])
    if spoilt:
        for i in range(size):
            out[i] = (np.float32(levels[i]) * stretch - zero) * step
            if levels[i] == top or bits == 1:
                out[i] = np.nan
    else:
        for i in range(size):
            out[i] = (np.float32(levels[i]) - zero) * step
