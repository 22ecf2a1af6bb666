"""Stochastic rounding to equally spaced levels by numba: see :mod:`.to_grid`."""

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .grid_bits import encoded, stretched
from .grid_numba import encode_block, numbers
from .inside_numba import inside
from .jit import parallel, room, tasks
from .memory_numba import array, kind, loaded
from .noise import BLOCK, start
from .packing import packed_size
from .pointers_numba import as_bytes, at, part_of


def to_grid(values: Tensor, seed: int, first: int, bits: int, inverse: float, zero: float) -> Tensor:
    """The same bits as the reference's."""
    held = encoded(len(values), values.device, bits)
    if len(values):
        spoilt, parts = torch.empty(-(-len(values) // BLOCK), dtype=torch.bool), tasks(len(values))
        _to_grid(
            array(values.contiguous()), kind(values.dtype), uint64(start(seed)), first, bits,
            numbers(bits, inverse, zero, stretched(bits)[0]), array(held), array(spoilt),
            *room(parts, BLOCK, np.float32), parts,
        )  # fmt: skip
        put_marks(spoilt, held, len(values), bits)
    return held


def put_marks(spoilt: Tensor, held: Tensor, count: int, bits: int) -> None:
    """Write which blocks are spoilt behind the codes."""
    split = packed_size(count, bits)
    if array(spoilt).any():
        held[split:] = inside(spoilt, "true", 0.0, 0.0)
    else:
        held[split:].zero_()


@parallel
def _to_grid(source, kind, start, first, bits, numbers_, codes, spoilt, room, words, tasks):
    entries, blocks = len(source), len(spoilt)
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, levels = part_of(room, task), as_bytes(part_of(words, task))
        for number in range(task * each, min(blocks, (task + 1) * each)):
            begin = number * BLOCK
            size = min(BLOCK, entries - begin)
            spoilt[number] = encode_block(
                loaded(at(source, begin), size, kind, x), size, bits, start, first + number, at(numbers_, 0), levels,
                at(codes, begin // 8 * bits),
            )  # fmt: skip
