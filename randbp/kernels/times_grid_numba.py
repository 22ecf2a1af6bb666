"""Entries times numbers on equally spaced levels, by numba: see :mod:`.times_grid`."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .grid_bits import stretched
from .grid_numba import decode_block, numbers
from .jit import function, parallel, tasks
from .levels import scale_dtype
from .memory_numba import FLOAT, array, kind, load, numpy_dtype, store
from .noise import BLOCK
from .packing import packed_size
from .unmask_numba import unmask


def times_grid(values: Tensor, held: Tensor, bits: int, step: float, zero: float) -> Tensor:
    """The same bits as the reference's."""
    count, precise, source = len(values), scale_dtype(values.dtype), values.contiguous()
    result = torch.empty_like(source, dtype=precise if values.dtype == torch.float16 else None)
    if count:
        split = packed_size(count, bits)
        spoilt = unmask(held[split:], -(-count // BLOCK))
        _times_grid(
            array(source), kind(values.dtype), array(held[:split].contiguous()), array(spoilt), bits,
            numbers(bits, step, zero, stretched(bits)[1]), array(result), kind(result.dtype),
            np.empty(0, numpy_dtype(precise)), tasks(count),
        )  # fmt: skip
    return result.to(values.dtype)


@parallel
def _times_grid(source, kind, codes, spoilt, bits, numbers_, result, wanted, like, tasks):
    entries, blocks = len(source), len(spoilt)
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, factors, levels = np.empty(BLOCK, like.dtype), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
        for number in range(task * each, min(blocks, (task + 1) * each)):
            at = number * BLOCK
            size = min(BLOCK, entries - at)
            some, given = factors[:size], source[at : at + size]
            packed = codes[at // 8 * bits : (at // 8 + (size + 7) // 8) * bits]
            decode_block(packed, bits, spoilt[number], numbers_, levels, some)
            if kind == FLOAT:
                _times(given, some, result[at : at + size])
            else:
                load(given, kind, x[:size])
                _times(x[:size], some, x[:size])
                store(x[:size], wanted, result[at : at + size])


@function
def _times(x, factors, out):
    for i in range(len(x)):
        out[i] = x[i] * factors[i]
