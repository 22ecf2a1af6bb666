"""Derivatives of smooth activations, rounded to equally spaced levels, by Triton: see :mod:`.slope_to_grid`."""

from torch import Tensor

from .to_grid_triton import rounded_slopes


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
    return rounded_slopes(values, function, parameters, seed, first, bits, inverse, zero)
