"""Second moments: sums of outer products, held as their rows as long as these are smaller."""

import torch
from torch import Tensor

from .factor_matrices import Dense, FactorMatrix, Rows


class Moment:
    """``Σ_n r_n r_nᵀ`` per group, from rows ``[G, N, R]`` or from such sums ``[G, R, R]``.

    Rows become a matrix when they enter a running average, in the product that adds them to it: a large layer's matrix
    is touched once instead of once for each of summing, scaling and averaging.

    Example:
        >>> moment = Moment()
        >>> moment.add_rows(torch.tensor([[[1.0, 2.0]]]))
        >>> moment.add_rows(torch.tensor([[[0.0, 1.0]]]))
        >>> moment.averaged(None, 1.0, 0.5)
        tensor([[[0.5000, 1.0000],
                 [1.0000, 2.5000]]])
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._matrix: Tensor | None = None

    def add_rows(self, rows: Tensor) -> None:
        """Add the outer products of rows ``[G, N, R]``."""
        self._rows.append(rows)
        if len(self._rows) > 1 and sum(each.shape[1] for each in self._rows) > rows.shape[2]:
            self.matrix()

    def add_matrix(self, matrix: Tensor) -> None:
        """Add a sum of outer products ``[G, R, R]``, or its diagonal ``[G, R]``."""
        self._matrix = matrix if self._matrix is None else self._matrix + matrix

    def add(self, other: "Moment") -> None:
        """Add another moment, which must not be used afterwards."""
        if other._matrix is not None:
            self.add_matrix(other._matrix)
        for rows in other._rows:
            self.add_rows(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(G, R, R)``, or ``(G, R)`` of a diagonal."""
        if self._matrix is not None:
            return tuple(self._matrix.shape)
        groups, _, rows = self._rows[0].shape
        return groups, rows, rows

    @property
    def has_rows(self) -> bool:
        """Whether :meth:`rows` are all there is."""
        return self._matrix is None

    @property
    def bound(self) -> Tensor:
        """An upper bound of the sum's largest entry: if the bound is finite, so is the sum."""
        parts = [rows.square().sum() for rows in self._rows]
        if self._matrix is not None:
            parts.append(self._matrix.abs().sum())
        return torch.stack(parts).sum()

    def rows(self) -> Tensor:
        """The rows ``r_n`` ``[G, N, R]`` of a moment that has nothing else, in the order in which they were seen."""
        assert self._rows and self._matrix is None
        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows, 1)]
        return self._rows[0]

    def factor(self, scale: float) -> FactorMatrix:
        """``scale Σ_n r_n r_nᵀ``, as rows if these are cheaper to multiply with; it is not to be used afterwards."""
        if self._matrix is None and 2 * sum(rows.shape[1] for rows in self._rows) <= self.shape[1]:
            rows = self.rows()
            return Rows(rows, rows.new_full((len(rows), 1), scale))
        return Dense(self.averaged(None, 1.0, scale) if self._matrix is None else self.matrix().mul_(scale))

    def matrix(self) -> Tensor:
        """The sum ``Σ_n r_n r_nᵀ`` ``[G, R, R]``, or its diagonal; its rows are no longer held afterwards."""
        if self._rows:
            rows = torch.cat(self._rows, 1)
            self.add_matrix(rows.mT @ rows)
            self._rows = []
        assert self._matrix is not None
        return self._matrix

    def averaged(self, known: Tensor | None, weight: float, scale: float) -> Tensor:
        """``(1 - weight) known + weight scale Σ_n r_n r_nᵀ``, written over ``known`` if it is given."""
        if self._rows and self._matrix is None:
            rows = torch.cat(self._rows, 1)
            if known is None:
                return (rows.mT * scale) @ rows
            return known.baddbmm_(rows.mT, rows, beta=1 - weight, alpha=weight * scale)
        matrix = self.matrix()
        return matrix * scale if known is None else known.mul_(1 - weight).add_(matrix, alpha=weight * scale)
