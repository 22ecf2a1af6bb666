"""Curvature of one layer as structured matrices: Kronecker products of two factors, and their eigendecompositions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .arguments import check_number, described
from .factor_matrices import Dense, FactorMatrix
from .inverse import shared_damping
from .places import View
from .weight_matrices import Form, as_matrices, from_matrices


@dataclass(frozen=True, eq=False)
class Layout:
    """The order in which a layer's weight and bias are one matrix ``[d, a]`` per group.

    Args:
        form: The form of the weight as matrices.
        weight: A tensor (it may be of the meta device) with the weight's size and strides.
        bias: Whether the bias is the last column.
        view: The order in which the layer reads the weight; ``None`` for the weight's own.
    """

    form: Form
    weight: Tensor
    bias: bool
    view: View | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, a)``."""
        return self.form.shape(self._read, self.bias)

    @property
    def _read(self) -> tuple[int, ...]:
        return tuple(self.weight.shape) if self.view is None else self.view.size

    def matrices(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Turn the weight's gradient, and the bias's, into matrices ``[G, d, a]``."""
        return as_matrices(self.form, weight if self.view is None else self.view.of(weight, self.weight), bias)

    def back(self, matrices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Undo :meth:`matrices`."""
        weight, bias = from_matrices(self.form, matrices, self._read)
        return weight if self.view is None else self.view.back(weight, self.weight), bias

    @cached_property
    def flat(self) -> Tensor:
        """Places ``[G, d, a]`` of the matrices' entries in the flat order: the weight's, then the bias's."""
        entries = self.weight.numel()
        bias = torch.arange(entries, entries + self.shape[0] * self.shape[1]) if self.bias else None
        return self.matrices(torch.arange(entries).view(self.weight.shape), bias)


class LayerMatrix(ABC):
    """A symmetric matrix over a layer's weight and bias that is block-diagonal over the layer's groups.

    Its rows and columns are in the flat order of the parameters: the weight's entries, then the bias's.
    ``matrix @ gradient`` takes

    - a gradient of the weight in its own shape, if the matrix is one over a weight alone;
    - gradients of weight and bias as a pair ``(weight, bias)``, of which it makes another one;
    - a flat vector ``[P]``, or several as columns ``[P, K]``;
    - matrices ``[G, d, a]``, one per group, whose last column is the bias.

    Attributes:
        layout: How weight and bias are matrices; ``None`` for matrices ``[G, d, a]`` that belong to no layer, whose
            flat order is their own.

    Raises:
        ValueError: From products, if the gradient has none of these shapes.
    """

    layout: Layout | None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, a)``: number of groups, and the shape of each one's matrix of weights (and biases)."""

    @abstractmethod
    def times(self, matrices: Tensor) -> Tensor:
        """Multiply with gradients as matrices ``[…, G, d, a]``."""

    @abstractmethod
    def blocks(self) -> Tensor:
        """The dense blocks ``[G, d·a, d·a]``, by rows of matrices ``[d, a]``."""

    @property
    def size(self) -> int:
        """``P = G·d·a``, the number of rows."""
        groups, outer, inner = self.shape
        return groups * outer * inner

    def __matmul__(self, gradient: Any) -> Any:
        layout = self.layout
        if isinstance(gradient, tuple | list) and layout is not None and _fit(layout, gradient):
            return layout.back(self.times(layout.matrices(*gradient)))
        if isinstance(gradient, Tensor):
            if gradient.shape == self.shape:
                return self.times(gradient)
            if layout is not None and not layout.bias and gradient.shape == layout.weight.shape:
                return layout.back(self.times(layout.matrices(gradient, None)))[0]
            if gradient.dim() in (1, 2) and len(gradient) == self.size:
                return self._times_flat(gradient)
        raise ValueError(f"gradient={_shapes(gradient)}: expected {self._expected()}")

    def to_dense(self) -> Tensor:
        """The dense matrix ``[P, P]``, in the flat order. For tests and tiny layers."""
        blocks = torch.block_diag(*self.blocks())
        if self.layout is None:
            return blocks
        places = self.layout.flat.flatten().argsort().to(blocks.device)
        return blocks[places[:, None], places]

    def _times_flat(self, vectors: Tensor) -> Tensor:
        places = None if self.layout is None else self.layout.flat.flatten().to(vectors.device)
        ordered = (vectors if places is None else vectors[places]).reshape(self.size, -1).T
        made = self.times(ordered.reshape(-1, *self.shape)).reshape(-1, self.size).T
        if places is None:
            return made.reshape(vectors.shape)
        return torch.empty_like(made).index_copy_(0, places, made).reshape(vectors.shape)

    def _expected(self) -> str:
        parts = [f"({self.size},) or ({self.size}, K)", f"matrices {self.shape}"]
        if self.layout is not None:
            weight = tuple(self.layout.weight.shape)
            outer = self.shape[0] * self.shape[1]
            parts.insert(0, f"a pair (weight {weight}, bias ({outer},))" if self.layout.bias else f"{weight}")
        return ", ".join(parts[:-1]) + f" or {parts[-1]}"


class KroneckerProduct(LayerMatrix):
    """``Γ ⊗ A`` for each group of a layer: ``(Γ ⊗ A) vec(G) = vec(Γ G A)`` for a gradient ``G`` ``[d, a]``.

    A factor may be held as fewer rows than it has (one per example, with ``approximation="reduce"``). Then products,
    traces, determinants, eigenvectors and the inverse are made of these rows, with the same results; the matrix is made
    where it is read.

    Args:
        input_factor: ``A`` ``[G, a, a]``, symmetric; the last row is the bias's, if there is one.
        output_grad_factor: ``Γ`` ``[G, d, d]``, symmetric.
        layout: How weight and bias are matrices.

    Attributes:
        factors: ``A`` and ``Γ`` as they are held.

    Source: J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, 2015.

    Example:
        >>> product = KroneckerProduct(2 * torch.eye(3)[None], torch.tensor([[[2.0, 1.0], [1.0, 2.0]]]))
        >>> product @ torch.ones(1, 2, 3)
        tensor([[[6., 6., 6.],
                 [6., 6., 6.]]])
        >>> product.trace().item(), product.logdet().exp().round().item(), product.to_dense().shape
        (24.0, 1728.0, torch.Size([6, 6]))
        >>> (product.eigh().inverse(damping=1.0) @ (product @ torch.ones(6) + torch.ones(6))).round(decimals=4)
        tensor([1., 1., 1., 1., 1., 1.])
    """

    def __init__(
        self,
        input_factor: Tensor | FactorMatrix,
        output_grad_factor: Tensor | FactorMatrix,
        layout: Layout | None = None,
    ) -> None:
        self.factors = _held(input_factor), _held(output_grad_factor)
        self.layout = layout

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, a)``."""
        inner, outer = self.factors
        return outer.groups, outer.size, inner.size

    @cached_property
    def input_factor(self) -> Tensor:
        """``A`` ``[G, a, a]``."""
        return self.factors[0].dense()

    @cached_property
    def output_grad_factor(self) -> Tensor:
        """``Γ`` ``[G, d, d]``."""
        return self.factors[1].dense()

    def times(self, matrices: Tensor) -> Tensor:
        """``Γ G A`` for matrices ``[…, G, d, a]``."""
        inner, outer = self.factors
        matrices = matrices.to(torch.promote_types(matrices.dtype, inner.dtype))
        return inner.times(outer.times(matrices.mT).mT)

    def blocks(self) -> Tensor:
        """The dense blocks ``[G, d·a, d·a]``."""
        made = torch.einsum("gde,gab->gdaeb", self.output_grad_factor, self.input_factor)
        return made.flatten(3, 4).flatten(1, 2)

    def trace(self) -> Tensor:
        """``Σ_g tr(Γ_g) tr(A_g)``."""
        inner, outer = self.factors
        return (outer.mean() * outer.size * inner.mean() * inner.size).sum()

    def logdet(self, damping: float = 0.0) -> Tensor:
        """``log det(Γ ⊗ A + λ I)`` for a damping ``λ``, exactly, from the factors' eigenvalues."""
        inner, outer = (each.eigenvalues() for each in self.factors)
        return _logdet(_products(outer, inner), damping)

    def inverse(self, damping: float) -> "KroneckerProduct":
        """``(Γ + √λ/π I)⁻¹ ⊗ (A + π√λ I)⁻¹``: about the inverse of ``Γ ⊗ A + λ I``, and as cheap as the product.

        See :func:`~randbp.curvature.damped_inverses`. The exact one is ``product.eigh().inverse(damping)``.

        Raises:
            ValueError: If the damping is not positive.
        """
        check_number("damping", damping, 0, exclude_low=True)
        inner, outer = self.factors
        shifts = shared_damping(inner.mean(), outer.mean(), damping)
        return KroneckerProduct(inner.inverse(shifts[0]), outer.inverse(shifts[1]), self.layout)

    def eigh(self) -> "KroneckerEigen":
        """The eigendecomposition ``(U ⊗ V) diag(S) (U ⊗ V)ᵀ`` with ``Γ = U diag(γ) Uᵀ``, ``A = V diag(α) Vᵀ``.

        Of a factor that is held as rows, only as many eigenvectors are made: all other eigenvalues are 0.
        """
        (inner, right), (outer, left) = (each.eigh() for each in self.factors)
        return KroneckerEigen(_products(outer, inner), left, right, self.layout)


@dataclass(frozen=True, eq=False)
class KroneckerEigen(LayerMatrix):
    """``(U ⊗ V) diag(S) (U ⊗ V)ᵀ`` for each group of a layer: a symmetric matrix in a Kronecker-factored eigenbasis.

    There may be fewer eigenvectors than ``d`` or ``a``, as of factors that are held as rows. All that is orthogonal to
    them has the same eigenvalue.

    Attributes:
        values: Eigenvalues ``S``, ``[G, d, a]`` if there are all. Those of a Kronecker product are ``S_ij = γ_i α_j``;
            others, such as second moments of gradients in the basis (EKFAC), are as good.
        output_grad_vectors: ``U`` ``[G, d, d]`` or ``[G, d, M]``, orthonormal; eigenvectors are columns.
        input_vectors: ``V`` ``[G, a, a]`` or ``[G, a, N]``, orthonormal.
        layout: How weight and bias are matrices.
        rest: All other eigenvalues.

    Example:
        >>> factor = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
        >>> made = KroneckerProduct(factor, factor).eigh()
        >>> made.values.round(decimals=3)
        tensor([[[1., 3.],
                 [3., 9.]]])
    """

    values: Tensor
    output_grad_vectors: Tensor
    input_vectors: Tensor
    layout: Layout | None = None
    rest: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, d, a)``."""
        return len(self.values), self.output_grad_vectors.shape[1], self.input_vectors.shape[1]

    @property
    def missing(self) -> int:
        """The number of eigenvalues that are not among :attr:`values`."""
        return self.size - self.values.numel()

    def to_basis(self, matrices: Tensor) -> Tensor:
        """Coordinates ``Uᵀ G V`` of matrices ``[…, G, d, a]`` in the eigenbasis, or of what it spans of them."""
        matrices = matrices.to(torch.promote_types(matrices.dtype, self.values.dtype))
        return self.output_grad_vectors.mT.to(matrices.dtype) @ matrices @ self.input_vectors.to(matrices.dtype)

    def from_basis(self, coordinates: Tensor) -> Tensor:
        """Undo :meth:`to_basis`."""
        left, right = self.output_grad_vectors.to(coordinates.dtype), self.input_vectors.mT.to(coordinates.dtype)
        return left @ coordinates @ right

    def times(self, matrices: Tensor) -> Tensor:
        """``U (S ∘ (Uᵀ G V)) Vᵀ`` for matrices ``[…, G, d, a]``, and :attr:`rest` times what is left."""
        coordinates = self.to_basis(matrices)
        if not self.missing:
            return self.from_basis(coordinates * self.values)
        return self.from_basis(coordinates * (self.values - self.rest)) + self.rest * matrices

    def blocks(self) -> Tensor:
        """The dense blocks ``[G, d·a, d·a]``."""
        basis = torch.einsum("gdi,gaj->gdaij", self.output_grad_vectors, self.input_vectors).flatten(3, 4).flatten(1, 2)
        rest = self.rest if self.missing else 0.0
        made = basis * (self.values - rest).flatten(1).unsqueeze(1) @ basis.mT
        return made + rest * torch.eye(made.shape[1], dtype=made.dtype, device=made.device)

    def trace(self) -> Tensor:
        """The sum of the eigenvalues."""
        return self.values.sum() + self.missing * self.rest

    def logdet(self, damping: float = 0.0) -> Tensor:
        """``log det(· + λ I)`` for a damping ``λ``."""
        known = _logdet(self.values.clamp_min(0), damping)
        return known + self.missing * known.new_tensor(self.rest + damping).log() if self.missing else known

    def inverse(self, damping: float) -> "KroneckerEigen":
        """The exact inverse of this matrix ``+ λ I``; eigenvalues that rounding made negative count as zero.

        Raises:
            ValueError: If the damping is not positive.
        """
        check_number("damping", damping, 0, exclude_low=True)
        inverted = 1 / (self.values.clamp_min(0) + damping)
        rest = 1 / (self.rest + damping)
        return KroneckerEigen(inverted, self.output_grad_vectors, self.input_vectors, self.layout, rest)


def _held(factor: Tensor | FactorMatrix) -> FactorMatrix:
    return Dense(factor) if isinstance(factor, Tensor) else factor


def _products(outer: Tensor, inner: Tensor) -> Tensor:
    """Eigenvalues ``γ_i α_j`` ``[G, d, a]``; those that rounding made negative are zero."""
    return outer.clamp_min(0).unsqueeze(2) * inner.clamp_min(0).unsqueeze(1)


def _logdet(values: Tensor, damping: float) -> Tensor:
    check_number("damping", damping, 0)
    return (values + damping).log().sum()


def _fit(layout: Layout, pair: Sequence[Any]) -> bool:
    """Whether a pair has the shapes of the weight and of the bias, or ``None`` where there is no bias."""
    if len(pair) != 2 or not isinstance(pair[0], Tensor) or pair[0].shape != layout.weight.shape:
        return False
    biases = (layout.shape[0] * layout.shape[1],)
    return isinstance(pair[1], Tensor) and pair[1].shape == biases if layout.bias else pair[1] is None


def _shapes(gradient: Any) -> str:
    if isinstance(gradient, tuple | list):
        return f"({', '.join(map(_shapes, gradient))})"
    return str(tuple(gradient.shape)) if isinstance(gradient, Tensor) else described(gradient)
