"""Diagonals of one layer's two Kronecker factors, in one pass over what they are of and without the factors."""

from math import prod

import torch
from torch import Tensor

from .._torch.hooks import without_autocast
from ..layers.layer_specs import LayerSpec, replace_batch
from .layer_factors import Approximation, input_rows, output_grad_rows

_AT_ONCE = 2**18
"""Entries that are squared at a time."""


def input_diagonal(
    spec: LayerSpec, input: Tensor, approximation: Approximation = "reduce", bias: bool = False
) -> Tensor:
    """The diagonal ``[G, R]`` of :func:`~randbp.curvature.input_factor`.

    For ``"expand"`` examples are summed before positions: ``1/N Σ_n Σ_o U_n[r, o]²`` is the unfolded ``1/N Σ_n x_n²``,
    summed over positions.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((8, 3, 5, 5), out_channels=4, kernel_size=3)
        >>> input_diagonal(layer, torch.full(layer.input_shape, 2.0), "expand", bias=True)[0, -2:]
        tensor([36.,  9.])
    """
    with without_autocast(input):
        if approximation == "reduce":
            return input_rows(spec, input, bias).square().mean(1)
        rows = input_rows(replace_batch(spec, 1), _mean_square(input), bias)
        return rows[:, 0] * prod(spec.output_size)


def output_grad_diagonal(spec: LayerSpec, output_grad: Tensor, approximation: Approximation = "reduce") -> Tensor:
    """The diagonal ``[G, D / G]`` of :func:`~randbp.curvature.output_grad_factor`.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((8, 3, 5, 5), out_channels=4, kernel_size=3)
        >>> output_grad_diagonal(layer, torch.ones(layer.output_shape))
        tensor([[81., 81., 81., 81.]])
    """
    with without_autocast(output_grad):
        if approximation == "reduce":
            return output_grad_rows(spec, output_grad).square().mean(1)
        return output_grad_rows(replace_batch(spec, 1), _mean_square(output_grad))[:, 0] / prod(spec.output_size)


def _mean_square(tensor: Tensor) -> Tensor:
    """``1/N Σ_n x_n²`` ``[1, C, *I]``, a few examples at a time, so that the squares are not all there at once."""
    total = torch.zeros_like(tensor[:1])
    for part in tensor.split(max(1, _AT_ONCE // max(1, total.numel()))):
        total += part.square().sum(0)
    return total / len(tensor)
