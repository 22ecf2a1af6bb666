"""Stochastic rounding of numbers of a known range to equally spaced levels."""

import torch
from torch import Tensor

from .grid_bits import codes_of, encoded, grid_bytes, marks_of, pieces, to_levels
from .operator import fused


def _fake(values: Tensor, seed: int, first: int, bits: int, inverse: float, zero: float) -> Tensor:
    return values.new_empty(grid_bytes(len(values), bits), dtype=torch.uint8)


@fused(_fake)
def to_grid(values: Tensor, seed: int, first: int, bits: int, inverse: float, zero: float) -> Tensor:
    """Codes and marks (:mod:`.grid_bits`) of flat entries, which are read in single precision.

    Args:
        values: ``[n]``, of any floating dtype.
        seed: Of the noise.
        first: Number of the first block for the noise.
        bits: Bits per entry, 1 to 8.
        inverse: One over the distance of levels.
        zero: Place of 0 among the levels.

    Returns:
        ``uint8``: codes, block after block, and a bit per block.

    Example:
        >>> to_grid(torch.tensor([0.0, 1.0, 2.0, 3.0]), 0, 0, 2, 1.0, 0.0)
        tensor([228,   0,   0], dtype=torch.uint8)
    """
    held, spoilt = encoded(len(values), values.device, bits), []
    for part in pieces(len(values), values.device):
        held[codes_of(part, bits)], marks = to_levels(values[part].float(), part, seed, first, bits, inverse, zero)
        spoilt.append(marks)
    return marks_of(spoilt, held, len(values), bits)
