"""Derivatives of smooth activations, rounded to equally spaced levels, by numba: see :mod:`.slope_to_grid`."""

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .derivatives import FUNCTIONS
from .derivatives_numba import derivative
from .grid_bits import encoded, stretched
from .grid_numba import encode_block, numbers
from .jit import parallel, room, tasks
from .memory_numba import array, kind, loaded
from .noise import BLOCK, start
from .pointers_numba import as_bytes, at, beyond, part_of
from .to_grid_numba import put_marks


def slope_to_grid(
    values: Tensor,
    function: str,
    parameters: list[float],
    seed: int,
    first: int,
    bits: int,
    inverse: float,
    zero: float,
) -> Tensor:
    """The same bits as the reference's."""
    held = encoded(len(values), values.device, bits)
    if len(values):
        spoilt, parts = torch.empty(-(-len(values) // BLOCK), dtype=torch.bool), tasks(len(values))
        _slope_to_grid(
            array(values.contiguous()), kind(values.dtype), FUNCTIONS.index(function),
            np.array(parameters, np.float32), uint64(start(seed)), first, bits,
            numbers(bits, inverse, zero, stretched(bits)[0]), array(held), array(spoilt),
            *room(parts, BLOCK, np.float32), parts,
        )  # fmt: skip
        put_marks(spoilt, held, len(values), bits)
    return held


@parallel
def _slope_to_grid(source, kind, function, parameters, start, first, bits, numbers_, codes, spoilt, room, words, tasks):
    entries, blocks = len(source), len(spoilt)
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, levels = part_of(room, task), as_bytes(part_of(words, task))
        slopes = beyond(x, BLOCK)
        for number in range(task * each, min(blocks, (task + 1) * each)):
            begin = number * BLOCK
            size = min(BLOCK, entries - begin)
            derivative(loaded(at(source, begin), size, kind, x), size, function, at(parameters, 0), slopes)
            spoilt[number] = encode_block(
                slopes, size, bits, start, first + number, at(numbers_, 0), levels, at(codes, begin // 8 * bits)
            )
