"""One Kronecker factor as it is held: as a matrix, or as the fewer rows whose outer products it is a sum of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .eigenvectors import eigh
from .inverse import least_shift, shifted_inverse


class FactorMatrix(ABC):
    """A symmetric matrix ``[R, R]`` for each of ``G`` groups."""

    @property
    @abstractmethod
    def held(self) -> tuple[Tensor, ...]:
        """The tensors by which it is held; the first one has its ``G`` and ``R`` as first and last size."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrices ``[G, R, R]``."""

    @abstractmethod
    def times(self, matrices: Tensor) -> Tensor:
        """``M F`` for matrices ``M`` ``[…, G, K, R]``, in their precision."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Means of eigenvalues ``tr F / R``, ``[G]``."""

    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """All eigenvalues ``[G, R]``, in any order."""

    @abstractmethod
    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``[G, K]`` and orthonormal eigenvectors as columns ``[G, R, K]``; all other eigenvalues are 0."""

    @abstractmethod
    def inverse(self, shift: Tensor) -> "FactorMatrix":
        """``(F + shift I)⁻¹`` with one shift ``[G]`` per group, for a positive semi-definite ``F``."""

    @property
    def groups(self) -> int:
        """``G``."""
        return self.held[0].shape[0]

    @property
    def size(self) -> int:
        """``R``."""
        return self.held[0].shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The precision."""
        return self.held[0].dtype


@dataclass(frozen=True, eq=False)
class Dense(FactorMatrix):
    """A factor that is held as a matrix ``[G, R, R]``."""

    matrix: Tensor

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The matrix."""
        return (self.matrix,)

    def dense(self) -> Tensor:
        """The matrix."""
        return self.matrix

    def times(self, matrices: Tensor) -> Tensor:
        """``M F``."""
        return matrices @ self.matrix.to(matrices.dtype)

    def mean(self) -> Tensor:
        """``tr F / R``."""
        return self.matrix.diagonal(dim1=1, dim2=2).mean(1)

    def eigenvalues(self) -> Tensor:
        """All eigenvalues, ascending."""
        return torch.linalg.eigvalsh(self.matrix)

    def eigh(self) -> tuple[Tensor, Tensor]:
        """All eigenvalues, ascending, and eigenvectors."""
        return eigh(self.matrix)

    def inverse(self, shift: Tensor) -> "Dense":
        """``(F + shift I)⁻¹``."""
        return Dense(shifted_inverse(self.matrix, shift))


@dataclass(frozen=True, eq=False)
class Rows(FactorMatrix):
    """``F = Σ_n w_n r_n r_nᵀ``, plus ``s I``, held as ``N < R`` rows.

    Nothing of ``R²`` entries is made but by :meth:`dense`. With ``rowsᵀ = Q T`` and ``T = W σ Zᵀ``, of ``N`` columns
    each, eigenvectors are ``V = Q W`` and eigenvalues ``α = w σ²``; so (Woodbury) ``(F + λ I)⁻¹ = 1/λ I - V diag(α /
    (λ (λ + α))) Vᵀ``, which is held in the same way.

    Args:
        rows: ``r_n``, ``[G, N, R]``.
        weights: ``w``, ``[G, 1]`` or ``[G, N]``; positive if there is no shift.
        shift: ``s``, ``[G]``; ``None`` for 0.

    Example:
        >>> factor = Rows(torch.tensor([[[3.0, 4.0, 0.0]]]), torch.ones(1, 1))
        >>> factor.eigenvalues(), factor.eigh()[1].abs()
        (tensor([[25.,  0.,  0.]]), tensor([[[0.6000],
                 [0.8000],
                 [0.0000]]]))
        >>> made = factor.inverse(torch.ones(1)).dense() @ (factor.dense() + torch.eye(3))
        >>> torch.allclose(made, torch.eye(3), atol=1e-5)
        True
    """

    rows: Tensor
    weights: Tensor
    shift: Tensor | None = None

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Rows, weights, and the shift if there is one."""
        return (self.rows, self.weights) + (() if self.shift is None else (self.shift,))

    def dense(self) -> Tensor:
        """``Σ_n w_n r_n r_nᵀ + s I``."""
        made = (self.rows.mT * self.weights.unsqueeze(1)) @ self.rows
        if self.shift is not None:
            made.diagonal(dim1=1, dim2=2).add_(self.shift.unsqueeze(1))
        return made

    def times(self, matrices: Tensor) -> Tensor:
        """``M F``, by way of ``M rowsᵀ``."""
        rows = self.rows.to(matrices.dtype)
        made = (matrices @ rows.mT * self.weights.to(matrices.dtype).unsqueeze(1)) @ rows
        return made if self.shift is None else made + matrices * self.shift.to(matrices.dtype).view(-1, 1, 1)

    def mean(self) -> Tensor:
        """``tr F / R``."""
        mean = (self.rows.square().sum(2) * self.weights).sum(1) / self.size
        return mean if self.shift is None else mean + self.shift

    def eigenvalues(self) -> Tensor:
        """``s`` plus eigenvalues of ``T diag(w) Tᵀ``, and plus 0 for all others."""
        triangle = torch.linalg.qr(self.rows.mT, mode="r").R
        values = torch.linalg.eigvalsh((triangle * self.weights.unsqueeze(1)) @ triangle.mT)
        values = pad(values, (0, self.size - values.shape[1]))
        return values if self.shift is None else values + self.shift.unsqueeze(1)

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues that may differ from 0, descending, and eigenvectors; all from the matrix if there is a shift."""
        if self.shift is not None:
            return Dense(self.dense()).eigh()
        basis, triangle = torch.linalg.qr(self._scaled.mT)
        vectors, roots, _ = torch.linalg.svd(triangle)
        return roots.square(), basis @ vectors

    def inverse(self, shift: Tensor) -> FactorMatrix:
        """``(F + shift I)⁻¹``."""
        if self.shift is not None:
            return Dense(self.dense()).inverse(shift)
        shift = least_shift(shift)
        values, vectors = self.eigh()
        parts = values / (values + shift.unsqueeze(1)) / shift.unsqueeze(1)
        return Rows(vectors.mT, -parts, 1 / shift)

    @property
    def _scaled(self) -> Tensor:
        return self.rows * self.weights.sqrt().unsqueeze(2)
