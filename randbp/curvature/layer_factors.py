"""The two Kronecker factors of one layer's Fisher (or generalised Gauss-Newton) matrix."""

from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from .. import tn
from .._torch.hooks import without_autocast
from ..text.near_words import nearest
from ..tn import ConvSpec, ConvTransposeSpec, LayerSpec
from .transposed_factors import transposed_expand

Approximation = Literal["reduce", "expand"]


def input_factor(spec: LayerSpec, input: Tensor, approximation: Approximation = "reduce", bias: bool = False) -> Tensor:
    """The factor of a layer's input ``[G, R, R]``, with ``R = C / G·ΠK`` rows, or one more if there is a bias.

    With the unfolded input ``U_n`` ``[R, O]`` of an example, whose last row is ones if there is a bias:

    - ``"reduce"``: ``A_g = 1/N Σ_n ū_n ū_nᵀ`` with ``ū_n = 1/O Σ_o U_n[:, o]``. The sums over positions are
      contracted without unfolding anything, in one pass over the input.
    - ``"expand"``: ``A_g = 1/N Σ_n U_n U_nᵀ``.

    Args:
        spec: The layer.
        input: ``[N, C, *I]``.
        approximation: ``"reduce"`` or ``"expand"``.
        bias: Whether the layer has one.

    Raises:
        ValueError: If the approximation is neither.

    Source: R. Eschenhagen et al., Kronecker-factored approximate curvature for modern neural networks, 2023; R. Grosse
    and J. Martens, A Kronecker-factored approximate Fisher matrix for convolution layers, 2016.

    Example:
        >>> layer = tn.ConvSpec((8, 3, 5, 5), out_channels=4, kernel_size=3)
        >>> input_factor(layer, torch.ones(layer.input_shape), bias=True).shape
        torch.Size([1, 28, 28])
    """
    reduced = check_approximation(approximation) == "reduce"
    with without_autocast(input):
        if reduced:
            rows = input_rows(spec, input, bias)
            return (rows / len(input)).mT @ rows
        return _expanded(spec, input, bias)


def _expanded(spec: LayerSpec, input: Tensor, bias: bool) -> Tensor:
    if isinstance(spec, ConvTransposeSpec):
        factor = transposed_expand(spec, input)
    else:
        factor = tn.kfac_expand(spec).contract(input=input)
    if not bias:
        return factor
    column = _position_sums(spec).contract(input=input).mean(0).unsqueeze(2)
    corner = column.new_full((spec.groups, 1, 1), prod(spec.output_size))
    return torch.cat([torch.cat([factor, column], 2), torch.cat([column.mT, corner], 2)], 1)


def output_grad_factor(spec: LayerSpec, output_grad: Tensor, approximation: Approximation = "reduce") -> Tensor:
    """The factor of a layer's output gradient ``[G, D / G, D / G]``.

    With ``V_n`` ``[D / G, O]``, the gradient of one example's own loss:

    - ``"reduce"``: ``Γ_g = 1/N Σ_n (V_n 1)(V_n 1)ᵀ``, positions are summed first;
    - ``"expand"``: ``Γ_g = 1/(N O) Σ_n V_n V_nᵀ``.

    The Fisher matrix of the layer's parameters, group by group, is about ``Γ ⊗ A``.

    Args:
        spec: The layer.
        output_grad: ``[N, D, *O]``.
        approximation: ``"reduce"`` or ``"expand"``.

    Raises:
        ValueError: If the approximation is neither, or the gradient has not the layer's shape.

    Example:
        >>> layer = tn.ConvSpec((8, 3, 5, 5), out_channels=4, kernel_size=3)
        >>> output_grad_factor(layer, torch.ones(layer.output_shape))[0, 0, 0]
        tensor(81.)
    """
    reduced = check_approximation(approximation) == "reduce"
    if tuple(output_grad.shape) != spec.output_shape:
        raise ValueError(f"output_grad: shape {tuple(output_grad.shape)}, expected {spec.output_shape}")
    with without_autocast(output_grad):
        if reduced:
            rows = output_grad_rows(spec, output_grad)
            return (rows / len(output_grad)).mT @ rows
        # Products of channels at the same position are what a layer with kernels of one entry has as its input factor.
        return tn.kfac_expand(_pointwise(spec)).contract(input=output_grad) / prod(spec.output_size)


def input_rows(spec: LayerSpec, input: Tensor, bias: bool) -> Tensor:
    """The rows ``ū_n`` ``[G, N, R]`` behind KFAC-reduce's input factor: the unfolded input's mean over positions."""
    means = _position_sums(spec).contract(input=input) / prod(spec.output_size)
    if bias:
        means = torch.cat([means, means.new_ones(*means.shape[:2], 1)], 2)
    return means.transpose(0, 1)


def output_grad_rows(spec: LayerSpec, output_grad: Tensor) -> Tensor:
    """The rows ``V_n 1`` ``[G, N, D / G]`` behind KFAC-reduce's factor of the output gradient."""
    return output_grad.flatten(2).sum(2).unflatten(1, (spec.groups, -1)).transpose(0, 1)


def check_approximation(approximation: object) -> str:
    """Raise ``ValueError`` unless it is ``"reduce"`` or ``"expand"``."""
    if not isinstance(approximation, str) or approximation not in ("reduce", "expand"):
        meant = nearest(approximation, ("reduce", "expand"))
        raise ValueError(f"approximation={approximation!r}: expected 'reduce' or 'expand'{meant}")
    return str(approximation)


@lru_cache(maxsize=1024)
def _position_sums(spec: LayerSpec) -> tn.TensorNetwork:
    """``Σ_o U[n, (c k), o]`` as ``[N, G, C / G·ΠK]``."""
    dims = range(1, spec.dims + 1)
    net = tn.unfold(spec).sum(*(f"o{dim}" for dim in dims))
    return net.group(("n",), ("g",), ("c", *(f"k{dim}" for dim in dims)))


@lru_cache(maxsize=1024)
def _pointwise(spec: LayerSpec) -> ConvSpec:
    shape = spec.output_shape
    return ConvSpec(shape, shape[1], 1, groups=spec.groups)
