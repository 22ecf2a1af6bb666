"""Structured matrices that are closed under sums and products: the Kronecker factors of SINGD."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """All matrices ``[rows, rows]``, and what other structures share with them.

    A structure is a set of square matrices ``K``. Those of a layer's groups are packed into one tensor ``[G, …]``, so
    that they are added and scaled like any tensors. The projection ``Π`` of a symmetric matrix takes the entries that
    the structure has, twice those of which it lacks the counterpart on the other side of the diagonal.

    Example:
        >>> structure = Dense(2)
        >>> packed = structure.identity(1, torch.ones(()))
        >>> structure.gram(packed, torch.tensor([[[1.0, 2.0]]]))
        tensor([[[1., 2.],
                 [2., 4.]]])
    """

    rows: int

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the packed entries of one matrix."""
        return self.rows, self.rows

    def identity(self, groups: int, like: Tensor) -> Tensor:
        """Identity matrices ``[G, …]``, packed."""
        eye = torch.eye(self.rows, dtype=like.dtype, device=like.device)
        return self.project(eye.expand(groups, -1, -1)).contiguous()

    def zeros(self, groups: int, like: Tensor) -> Tensor:
        """Zero matrices ``[G, …]``, packed."""
        return like.new_zeros(groups, *self.packed_shape)

    def to_dense(self, packed: Tensor) -> Tensor:
        """Unpack matrices to ``[G, rows, rows]``."""
        return packed

    def project(self, matrix: Tensor) -> Tensor:
        """``Π(M)`` of symmetric matrices ``[G, rows, rows]``, packed."""
        return matrix

    def outer(self, vectors: Tensor) -> Tensor:
        """``Π(V Vᵀ)`` of ``[G, rows, N]``, packed."""
        return vectors @ vectors.mT

    def times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``K M`` of ``[G, rows, N]``."""
        return packed @ matrix

    def transposed_times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``Kᵀ M`` of ``[G, rows, N]``."""
        return packed.mT @ matrix

    def product(self, packed: Tensor, other: Tensor) -> Tensor:
        """``K L`` of two matrices of this structure, packed."""
        return packed @ other

    def square(self, packed: Tensor) -> Tensor:
        """``Π(Kᵀ K)``, packed."""
        return self.outer(packed.mT)

    def mean_diagonal(self, packed: Tensor) -> Tensor:
        """``tr K / rows`` ``[G]``."""
        return packed.diagonal(dim1=-2, dim2=-1).sum(-1) / self.rows

    def gram(self, packed: Tensor, rows: Tensor) -> Tensor:
        """``Π(Kᵀ Σ_n r_n r_nᵀ K)`` of rows ``[G, N, rows]``, packed."""
        return self.outer(self.transposed_times(packed, rows.mT))

    def congruence(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``Π(Kᵀ M K)`` of symmetric matrices ``[G, rows, rows]``, packed."""
        return self.project(self.transposed_times(packed, self.transposed_times(packed, matrix).mT))

    def precondition(self, packed: Tensor, grad: Tensor) -> Tensor:
        """``G K Kᵀ`` of ``[G, N, rows]``."""
        return self.times(packed, self.transposed_times(packed, grad.mT)).mT


@dataclass(frozen=True)
class Diagonal(Dense):
    """Diagonal matrices, packed as ``[G, rows]``. No matrix of ``rows`` rows and columns is ever made.

    Example:
        >>> Diagonal(2).gram(torch.tensor([[1.0, 3.0]]), torch.tensor([[[1.0, 2.0], [1.0, 0.0]]]))
        tensor([[ 2., 36.]])
    """

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """``(rows,)``."""
        return (self.rows,)

    def identity(self, groups: int, like: Tensor) -> Tensor:
        """Ones ``[G, rows]``."""
        return like.new_ones(groups, self.rows)

    def to_dense(self, packed: Tensor) -> Tensor:
        """Unpack matrices to ``[G, rows, rows]``."""
        return packed.diag_embed()

    def project(self, matrix: Tensor) -> Tensor:
        """The diagonals."""
        return matrix.diagonal(dim1=-2, dim2=-1)

    def outer(self, vectors: Tensor) -> Tensor:
        """``Σ_n V[:, :, n]²``."""
        return vectors.square().sum(2)

    def times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``K M``."""
        return packed.unsqueeze(2) * matrix

    def transposed_times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``K M``, too."""
        return packed.unsqueeze(2) * matrix

    def product(self, packed: Tensor, other: Tensor) -> Tensor:
        """Products of the diagonals."""
        return packed * other

    def square(self, packed: Tensor) -> Tensor:
        """Squares of the diagonals."""
        return packed.square()

    def mean_diagonal(self, packed: Tensor) -> Tensor:
        """Means of the diagonals."""
        return packed.mean(1)

    def gram(self, packed: Tensor, rows: Tensor) -> Tensor:
        """``K² Σ_n r_n²``."""
        return packed.square() * rows.square().sum(1)

    def congruence(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``K² diag M``."""
        return packed.square() * self.project(matrix)

    def precondition(self, packed: Tensor, grad: Tensor) -> Tensor:
        """``G K²``, in one pass over ``G``."""
        return grad * packed.square().unsqueeze(1)


@dataclass(frozen=True)
class BlockDiagonal(Dense):
    """Dense blocks of ``block`` rows along the diagonal, the last one smaller if need be, packed as ``[G, B, b, b]``.

    Example:
        >>> BlockDiagonal(3, block=2).to_dense(BlockDiagonal(3, block=2).identity(1, torch.ones(()))).shape
        torch.Size([1, 3, 3])
    """

    block: int = 30

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """``(B, b, b)``; what the last block has too much is zero."""
        size = min(self.block, self.rows)
        return -(-self.rows // size), size, size

    def identity(self, groups: int, like: Tensor) -> Tensor:
        """Identity matrices, with zeros where the last block has rows too much."""
        blocks, size, _ = self.packed_shape
        diagonal = like.new_zeros(groups, blocks * size)
        diagonal[:, : self.rows] = 1
        return diagonal.unflatten(1, (blocks, size)).diag_embed()

    def to_dense(self, packed: Tensor) -> Tensor:
        """Unpack matrices to ``[G, rows, rows]``."""
        blocks, size, _ = self.packed_shape
        spread = packed.new_zeros(len(packed), blocks, size, blocks, size)
        spread.diagonal(dim1=1, dim2=3).copy_(packed.movedim(1, -1))
        return spread.flatten(3).flatten(1, 2)[:, : self.rows, : self.rows]

    def project(self, matrix: Tensor) -> Tensor:
        """The blocks."""
        blocks, size, _ = self.packed_shape
        rest = blocks * size - self.rows
        whole = torch.nn.functional.pad(matrix, (0, rest, 0, rest))
        tiles = whole.unflatten(2, (blocks, size)).unflatten(1, (blocks, size))
        return tiles.diagonal(dim1=1, dim2=3).movedim(-1, 1)

    def outer(self, vectors: Tensor) -> Tensor:
        """``V_b V_bᵀ`` of every block's rows."""
        own = self._cut(vectors)
        return own @ own.mT

    def times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``K M``, block by block."""
        return (packed @ self._cut(matrix)).flatten(1, 2)[:, : self.rows]

    def transposed_times(self, packed: Tensor, matrix: Tensor) -> Tensor:
        """``Kᵀ M``, block by block."""
        return self.times(packed.mT, matrix)

    def square(self, packed: Tensor) -> Tensor:
        """``K_bᵀ K_b``."""
        return packed.mT @ packed

    def mean_diagonal(self, packed: Tensor) -> Tensor:
        """``tr K / rows``."""
        return super().mean_diagonal(packed).sum(1)

    def _cut(self, matrix: Tensor) -> Tensor:
        """``[G, rows, N]`` as ``[G, B, b, N]``."""
        blocks, size, _ = self.packed_shape
        padded = torch.nn.functional.pad(matrix, (0, 0, 0, blocks * size - self.rows))
        return padded.unflatten(1, (blocks, size))


@dataclass(frozen=True)
class Triangular(Dense):
    """Lower-triangular matrices: ``K Kᵀ`` is a Cholesky factorisation of any positive matrix.

    Example:
        >>> Triangular(2).outer(torch.tensor([[[1.0], [2.0]]]))
        tensor([[[1., 0.],
                 [4., 4.]]])
    """

    def project(self, matrix: Tensor) -> Tensor:
        """The lower triangle, doubled below the diagonal."""
        return matrix.tril().add_(matrix.tril(-1))

    def outer(self, vectors: Tensor) -> Tensor:
        """``Π(V Vᵀ)``."""
        return self.project(vectors @ vectors.mT)
