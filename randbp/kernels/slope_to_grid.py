"""Derivatives of smooth activations, rounded to equally spaced levels in the pass that computes them."""

from torch import Tensor

from .derivatives import derivative
from .grid_bits import codes_of, encoded, grid_bytes, marks_of, pieces, to_levels
from .operator import fused


def _fake(
    values: Tensor,
    function: str,
    parameters: list[float],
    seed: int,
    first: int,
    bits: int,
    inverse: float,
    zero: float,
) -> Tensor:
    return values.new_empty(grid_bytes(len(values), bits), dtype=values.dtype).byte()


@fused(_fake)
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
    """Codes and marks (:mod:`.grid_bits`) of ``φ'(x)``, of flat entries that are read in single precision.

    Args:
        values: ``x``, ``[n]``, of any floating dtype.
        function: One of :data:`.derivatives.FUNCTIONS`.
        parameters: Its three numbers.
        seed: Of the noise.
        first: Number of the first block for the noise.
        bits: Bits per entry, 1 to 8.
        inverse: One over the distance of levels.
        zero: Place of 0 among the levels.

    Example:
        >>> import torch
        >>> slope_to_grid(torch.tensor([-9.0, 9.0]), "gelu", [1.0, 0.0, 0.0], 0, 0, 4, 11.0, 2.0)
        tensor([ 2, 13,  0,  0,  0], dtype=torch.uint8)
    """
    held, spoilt = encoded(len(values), values.device, bits), []
    for part in pieces(len(values), values.device):
        slopes = derivative(values[part].float(), function, parameters)
        held[codes_of(part, bits)], marks = to_levels(slopes, part, seed, first, bits, inverse, zero)
        spoilt.append(marks)
    return marks_of(spoilt, held, len(values), bits)
