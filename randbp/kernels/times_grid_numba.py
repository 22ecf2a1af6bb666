"""Entries times numbers on equally spaced levels, by numba: see :mod:`.times_grid`."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .grid_bits import stretched
from .grid_numba import decode_block, numbers
from .jit import function, parallel, room, tasks
from .levels import scale_dtype
from .memory_numba import array, buffer_of, kind, loaded, numpy_dtype, storable, stored
from .noise import BLOCK
from .packing import packed_size
from .pointers_numba import as_bytes, at, part_of
from .unmask_numba import unmask


def times_grid(values: Tensor, held: Tensor, bits: int, step: float, zero: float) -> Tensor:
    """The same bits as the reference's."""
    count, precise, source = len(values), scale_dtype(values.dtype), values.contiguous()
    result = torch.empty_like(source, dtype=storable(values.dtype))
    if count:
        split, parts = packed_size(count, bits), tasks(count)
        spoilt = unmask(held[split:], -(-count // BLOCK))
        _times_grid(
            array(source), kind(values.dtype), array(held[:split].contiguous()), array(spoilt), bits,
            numbers(bits, step, zero, stretched(bits)[1]), array(result), np.empty((parts, BLOCK), np.float32),
            *room(parts, BLOCK, numpy_dtype(precise)), parts,
        )  # fmt: skip
    return result.to(values.dtype)


@parallel
def _times_grid(source, kind, codes, spoilt, bits, numbers_, result, factors, room, words, tasks):
    entries, blocks = len(source), len(spoilt)
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, some, levels = part_of(room, task), part_of(factors, task), as_bytes(part_of(words, task))
        for number in range(task * each, min(blocks, (task + 1) * each)):
            begin = number * BLOCK
            size = min(BLOCK, entries - begin)
            packed, out = at(codes, begin // 8 * bits), at(result, begin)
            decode_block(packed, size, bits, spoilt[number], at(numbers_, 0), levels, some)
            product = buffer_of(out, x)
            _times(loaded(at(source, begin), size, kind, x), size, some, product)
            stored(product, size, out)


@function
def _times(x, size, factors, out):
    for i in range(size):
        out[i] = x[i] * factors[i]
