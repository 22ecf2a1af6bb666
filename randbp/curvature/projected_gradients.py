"""Squares of per-example gradients of a weight in a Kronecker-factored basis, one pair of tensors for each call."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Protocol

from torch import Tensor

from .. import tn
from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec
from ..tn.operations.layer_legs import LayerLegs
from .layer_factors import input_rows, output_grad_rows

ENTRIES = 2**22
"""Most entries of gradients that are made at once; those of a single example may have more."""


class Pair(Protocol):
    """What is known of a call of a layer from both sides, so that it has each example's gradient ``G_n``."""

    def squares(self, left: Tensor, right: Tensor) -> Tensor:
        """``Σ_n (leftᵀ G_n right)²`` ``[G, d, a]``, entry by entry, for bases ``[G, d, d]`` and ``[G, a, a]``."""


@dataclass(frozen=True, eq=False)
class RowPair:
    """Gradients of rank one ``G_n = v_n u_nᵀ``: of KFAC-reduce, and of layers that share no weights.

    Args:
        input: ``u_n`` ``[G, N, a]``.
        output_grad: ``v_n`` ``[G, N, d]``.

    Example:
        >>> import torch
        >>> pair = RowPair(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]]))
        >>> pair.squares(torch.eye(1)[None], torch.eye(2)[None])
        tensor([[[ 9., 36.]]])
    """

    input: Tensor
    output_grad: Tensor

    def squares(self, left: Tensor, right: Tensor) -> Tensor:
        """``Σ_n (leftᵀ v_n)² ((rightᵀ u_n)²)ᵀ``."""
        outer, inner = self.output_grad @ left.to(self.output_grad), self.input @ right.to(self.input)
        return outer.square().mT @ inner.square()


@dataclass(frozen=True, eq=False)
class CallPair:
    """Gradients ``G_n = V_n U_nᵀ``, sums over positions, of a layer that shares its weights.

    They are made for a few examples at a time, already in the basis, by a network whose plan says what meets what
    first: the bases are kernels of the layer where it has few positions.

    Args:
        spec: The layer.
        input: ``[N, C, *I]``.
        output_grad: ``[N, D, *O]``.
        bias: Whether the last column is the bias's.

    Example:
        >>> import torch
        >>> spec = tn.ConvSpec((2, 3, 5, 5), out_channels=4, kernel_size=3)
        >>> pair = CallPair(spec, torch.ones(spec.input_shape), torch.ones(spec.output_shape), bias=True)
        >>> pair.squares(torch.eye(4)[None], torch.eye(28)[None])[0, 0, 0]
        tensor(162.)
    """

    spec: LayerSpec
    input: Tensor
    output_grad: Tensor
    bias: bool

    def squares(self, left: Tensor, right: Tensor) -> Tensor:
        """Sums of the squares of a few examples after another."""
        left, right = left.to(self.output_grad), right.to(self.input)
        size = max(1, ENTRIES // (left.shape[0] * left.shape[2] * right.shape[2]))
        total = left.new_zeros(left.shape[0], left.shape[2], right.shape[2])
        for input, output_grad in zip(self.input.split(size), self.output_grad.split(size), strict=True):
            total += self._projected(input, output_grad, left, right).square_().sum(0)
        return total

    def _projected(self, input: Tensor, output_grad: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """``leftᵀ G_n right`` ``[n, G, d, a]``."""
        spec = replace_batch(self.spec, len(input))
        kernels = right[:, :-1] if self.bias else right
        net = _network(spec, right.shape[2])
        made = net.contract(input=input, output_grad=output_grad, left=left, right=kernels)
        if self.bias:
            sums = output_grad_rows(spec, output_grad) @ left  # [G, n, d]
            made = made + sums.transpose(0, 1).unsqueeze(3) * right[:, -1].unsqueeze(1)
        return made


def pair_of(spec: LayerSpec, input: Tensor, output_grad: Tensor, bias: bool) -> Pair:
    """The exact gradients of a layer's call."""
    if prod(spec.output_size) == 1:
        return RowPair(input_rows(spec, input, bias), output_grad_rows(spec, output_grad))
    return CallPair(spec, input, output_grad, bias)


@lru_cache(maxsize=1024)
def _network(spec: LayerSpec, columns: int) -> tn.TensorNetwork:
    """``leftᵀ V_n U_nᵀ right`` ``[n, G, d, columns]``."""
    legs = LayerLegs(spec)
    legs.sizes |= {"e": spec.out_channels // spec.groups, "b": columns}
    bases = {"left": (("g",), ("d",), ("e",)), "right": (("g",), ("c", *legs.k), ("b",))}
    given = {"input": legs.input, "output_grad": legs.output}
    return legs.network("projected_gradients", given, (("n",), ("g",), ("e",), ("b",)), bases)
