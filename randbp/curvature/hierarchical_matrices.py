"""Diagonal matrices with a few dense rows above and below them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .structured_matrices import Dense


@dataclass(frozen=True)
class Hierarchical(Dense):
    """A diagonal matrix with ``top`` dense rows above and ``bottom`` dense rows below it::

        A  B₁  B₂     A: [top, top]
        0  C   0      C: diagonal
        0  D   E      E: [bottom, bottom]

    In the order of rows ``C, E, A`` this is a block lower-triangular matrix. Packed, it is ``[A B]``, ``diag C`` and
    ``[D E]`` in a row, ``[G, top·rows + … ]``: its size grows linearly in its rows. A matrix that is smaller than
    ``top + bottom`` has no ``C``, and then a smaller ``E``.

    Example:
        >>> structure = Hierarchical(4, top=1, bottom=1)
        >>> structure.to_dense(torch.arange(1.0, 10.0)[None])
        tensor([[[1., 2., 3., 4.],
                 [0., 5., 0., 0.],
                 [0., 0., 6., 0.],
                 [0., 7., 8., 9.]]])
    """

    top: int = 15
    bottom: int = 15

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows of ``A``, ``C`` and ``E``."""
        top = min(self.top, self.rows)
        bottom = min(self.bottom, self.rows - top)
        return top, self.rows - top - bottom, bottom

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """``(top·rows + diagonal + bottom·(rows - top),)``."""
        top, middle, bottom = self.sizes
        return (top * self.rows + middle + bottom * (middle + bottom),)

    def to_dense(self, packed: Tensor) -> Tensor:
        """Unpack matrices to ``[G, rows, rows]``."""
        upper, diagonal, lower = self._parts(packed)
        top, middle, _ = self.sizes
        matrix = packed.new_zeros(len(packed), self.rows, self.rows)
        matrix[:, :top] = upper
        matrix.diagonal(dim1=1, dim2=2)[:, top : top + middle] = diagonal
        matrix[:, top + middle :, top:] = lower
        return matrix

    def project(self, matrix: Tensor) -> Tensor:
        """The parts, with ``B`` and ``D`` doubled."""
        top, middle, _ = self.sizes
        diagonal = matrix.diagonal(dim1=1, dim2=2)[:, top : top + middle]
        return self._doubled(matrix[:, :top], diagonal, matrix[:, top + middle :, top:])

    def identity(self, groups: int, like: Tensor) -> Tensor:
        """Identity matrices."""
        top, middle, bottom = self.sizes
        eye = [torch.eye(size, self.rows, dtype=like.dtype, device=like.device) for size in (top, bottom)]
        lower = eye[1].roll(middle, 1)[:, : middle + bottom]
        parts = eye[0].flatten(), like.new_ones(middle), lower.flatten()
        return torch.cat(parts).repeat(groups, 1)

    def outer(self, vectors: Tensor) -> Tensor:
        """``Π(V Vᵀ)``."""
        first, second, third = vectors.split(self.sizes, 1)
        rest = vectors[:, len(first[0]) :]
        return self._doubled(first @ vectors.mT, second.square().sum(2), third @ rest.mT)

    def times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``K M``."""
        upper, diagonal, lower = self._parts(packed)
        top, middle, _ = self.sizes
        return torch.cat(
            [upper @ matrix, diagonal.unsqueeze(2) * matrix[:, top : top + middle], lower @ matrix[:, top:]], 1
        )

    def transposed_times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``Kᵀ M``."""
        upper, diagonal, lower = self._parts(packed)
        first, second, third = matrix.split(self.sizes, 1)
        result = upper.mT @ first
        result[:, len(first[0]) :] += lower.mT @ third
        result[:, len(first[0]) : self.rows - len(third[0])] += diagonal.unsqueeze(2) * second
        return result

    def product(self, packed: Tensor, other: Tensor) -> Tensor:
        """``K L``, packed."""
        (upper, diagonal, lower), (its_upper, its_diagonal, its_lower) = self._parts(packed), self._parts(other)
        top, middle, _ = self.sizes
        above = upper[:, :, :top] @ its_upper
        above[:, :, top:] += upper[:, :, top + middle :] @ its_lower
        above[:, :, top : top + middle] += upper[:, :, top : top + middle] * its_diagonal.unsqueeze(1)
        below = lower[:, :, middle:] @ its_lower
        below[:, :, :middle] += lower[:, :, :middle] * its_diagonal.unsqueeze(1)
        return _packed(above, diagonal * its_diagonal, below)

    def square(self, packed: Tensor) -> Tensor:
        """``Π(Kᵀ K)``, packed."""
        upper, diagonal, lower = self._parts(packed)
        top, middle, _ = self.sizes
        right, d = upper[:, :, top:], lower[:, :, :middle]
        middles = diagonal.square() + right[:, :, :middle].square().sum(1) + d.square().sum(1)
        below = upper[:, :, top + middle :].mT @ right + lower[:, :, middle:].mT @ lower
        return self._doubled(upper[:, :, :top].mT @ upper, middles, below)

    def mean_diagonal(self, packed: Tensor) -> Tensor:
        """``tr K / rows``."""
        upper, diagonal, lower = self._parts(packed)
        ends = upper.diagonal(dim1=1, dim2=2).sum(1) + lower[:, :, self.sizes[1] :].diagonal(dim1=1, dim2=2).sum(1)
        return (ends + diagonal.sum(1)) / self.rows

    def _parts(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[A B]``, the diagonal of ``C``, and ``[D E]``."""
        top, middle, bottom = self.sizes
        upper, diagonal, lower = packed.split([top * self.rows, middle, bottom * (middle + bottom)], 1)
        return upper.unflatten(1, (top, -1)), diagonal, lower.reshape(len(packed), bottom, middle + bottom)

    def _doubled(self, upper: Tensor, diagonal: Tensor, lower: Tensor) -> Tensor:
        """Pack parts of a symmetric matrix, with what has no counterpart in the structure doubled."""
        top, middle, _ = self.sizes
        upper, lower = upper.clone(), lower.clone()
        upper[:, :, top:] *= 2
        lower[:, :, :middle] *= 2
        return _packed(upper, diagonal, lower)


def _packed(upper: Tensor, diagonal: Tensor, lower: Tensor) -> Tensor:
    return torch.cat([upper.flatten(1), diagonal, lower.flatten(1)], 1)
