"""Entries times numbers on equally spaced levels."""

import torch
from torch import Tensor

from .grid_bits import codes_of, from_levels, pieces, spoilt_blocks
from .levels import scale_dtype
from .noise import BLOCK
from .operator import fused


def _fake(values: Tensor, held: Tensor, bits: int, step: float, zero: float) -> Tensor:
    return torch.empty_like(values)


@fused(_fake)
def times_grid(values: Tensor, held: Tensor, bits: int, step: float, zero: float) -> Tensor:
    """``values`` times what :func:`.to_grid` holds: ``x (k - o) h``, in single precision or the entries' own.

    Args:
        values: ``[n]``, of any floating dtype.
        held: Codes and marks.
        bits: Bits per entry.
        step: Distance ``h`` of levels.
        zero: Place ``o`` of 0 among them.

    Example:
        >>> times_grid(torch.ones(4), torch.tensor([228, 0, 0], dtype=torch.uint8), 2, 1.0, 0.0)
        tensor([0., 1., 2., 3.])
    """
    count, precise = len(values), scale_dtype(values.dtype)
    result, spoilt = torch.empty_like(values), spoilt_blocks(held, count, bits)
    for part in pieces(count, values.device):
        marks = spoilt[part.start // BLOCK : -(-part.stop // BLOCK)]
        factors = from_levels(held[codes_of(part, bits)], marks, part.stop - part.start, bits, step, zero)
        result[part] = values[part].to(precise) * factors
    return result
