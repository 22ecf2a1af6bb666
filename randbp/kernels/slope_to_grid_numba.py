"""Derivatives of smooth activations, rounded to equally spaced levels, by numba: see :mod:`.slope_to_grid`."""

import numpy as np
import torch
from numba import prange, uint64
from torch import Tensor

from .derivatives import FUNCTIONS
from .derivatives_numba import derivative
from .grid_bits import encoded, stretched
from .grid_numba import encode_block, numbers
from .inside_numba import inside
from .jit import parallel, tasks
from .memory_numba import array, kind, load
from .noise import BLOCK, start
from .packing import packed_size


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
        spoilt, split = torch.empty(-(-len(values) // BLOCK), dtype=torch.bool), packed_size(len(values), bits)
        _slope_to_grid(
            array(values.contiguous()), kind(values.dtype), FUNCTIONS.index(function),
            np.array(parameters, np.float32), uint64(start(seed)), first, bits,
            numbers(bits, inverse, zero, stretched(bits)[0]), array(held[:split]), array(spoilt), tasks(len(values)),
        )  # fmt: skip
        held[split:] = inside(spoilt, "true", 0.0, 0.0)
    return held


@parallel
def _slope_to_grid(source, kind, function, parameters, start, first, bits, numbers_, codes, spoilt, tasks):
    entries, blocks = len(source), len(spoilt)
    each = (blocks + tasks - 1) // tasks
    for task in prange(tasks):
        x, room = np.empty(BLOCK, np.float32), np.empty((5, BLOCK), np.float32)
        pairs, levels = np.empty(BLOCK // 2, np.uint32), np.empty(BLOCK, np.int32)
        for number in range(task * each, min(blocks, (task + 1) * each)):
            at = number * BLOCK
            size = min(BLOCK, entries - at)
            load(source[at : at + size], kind, x[:size])
            derivative(
                x[:size], function, parameters, room[0, :size], room[1, :size], room[2, :size], room[3, :size],
                room[4, :size],
            )  # fmt: skip
            out = codes[at // 8 * bits : (at // 8 + (size + 7) // 8) * bits]
            spoilt[number] = encode_block(x[:size], bits, start, first + number, numbers_, pairs, levels, out) != 0
