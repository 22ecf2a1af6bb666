"""Control variates: what is kept of a tensor exactly, so that only the deviation from it is sampled."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tn.execute.segments import flat_spatial


@dataclass(frozen=True)
class CellMeans:
    """Means of cells of ``block`` positions per dimension; the last cell of a dimension may be smaller.

    One cell for all positions is the spatial mean of each example and channel. As the deviations of each cell add up to
    zero, the mean of those kept may be taken from the cell's own, which centres the other factor of each product, too:
    ``Σ_i (X - m) V = Σ_i (X - m)(V - mean V)``, of which a sample has less variance.

    Example:
        >>> grid = CellMeans(sizes=(5, 8), block=4)
        >>> grid.shape, grid.means(torch.ones(2, 3, 5, 8)).shape
        ((2, 2), torch.Size([2, 12]))
    """

    sizes: tuple[int, ...]
    block: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells per dimension."""
        return tuple(-(-size // self.block) for size in self.sizes)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return prod(self.shape)

    def entries(self, shape: tuple[int, ...]) -> int:
        """One for each example, channel and cell."""
        return shape[0] * shape[1] * self.cells

    def means(self, tensor: Tensor) -> Tensor:
        """Mean of each cell of ``[N, C, *P]``, as ``[N, C·cells]``."""
        if self.cells == 1:
            return flat_spatial(tensor).mean(2)
        kernel = tuple(min(self.block, size) for size in self.sizes)
        if len(kernel) == 1:
            return F.avg_pool1d(tensor, kernel, kernel, ceil_mode=True).flatten(1)
        if len(kernel) == 3:  # avg_pool3d lacks reduced precision on a CPU; a cell's mean is the mean of its planes'
            planes = F.avg_pool2d(tensor.flatten(1, 2), kernel[1:], kernel[1:], ceil_mode=True)
            tensor, kernel = planes.reshape(*tensor.shape[:3], -1), (kernel[0], 1)
        return F.avg_pool2d(tensor, kernel, kernel, ceil_mode=True).flatten(1)


@dataclass(frozen=True)
class MeanExample:
    """The mean over the examples of a batch."""

    def entries(self, shape: tuple[int, ...]) -> int:
        """One example."""
        return prod(shape[1:])

    def means(self, tensor: Tensor) -> Tensor:
        """Mean ``[1, C, *P]``."""
        return tensor.mean(0, keepdim=True)


Control = CellMeans | MeanExample
"""Some numbers of a tensor ``[N, C, *P]`` that are kept exactly: how many ``entries`` they are, and the ``means``."""


@lru_cache(maxsize=256)
def cell_of(grid: CellMeans, device: torch.device) -> Tensor:
    """Cell of each flat position."""
    cells = torch.zeros(1, dtype=torch.long, device="cpu")
    for size, count in zip(grid.sizes, grid.shape, strict=True):
        cells = (cells[:, None] * count + torch.arange(size, device="cpu") // grid.block).flatten()
    return cells.to(device, non_blocking=True)


def spread(grid: CellMeans, means: Tensor) -> Tensor:
    """Numbers of cells ``[N, C·cells]`` at the positions of each cell, ``[N, C, P]``."""
    if grid.cells == 1:
        return means.unsqueeze(2).expand(-1, -1, prod(grid.sizes))
    means = means.unflatten(1, (-1, *grid.shape))
    for dim, size in enumerate(grid.sizes, 2):
        means = means.repeat_interleave(grid.block, dim).narrow(dim, 0, size)
    return means.flatten(2)


@lru_cache(maxsize=256)
def cell_sizes(grid: CellMeans, device: torch.device) -> Tensor:
    """Number of positions of each cell."""
    return torch.bincount(cell_of(grid, torch.device("cpu"))).to(device, non_blocking=True)


def half_in_cells(shape: tuple[int, ...], budget: float, block: bool | int) -> CellMeans | None:
    """The finest cells whose means take at most half of the entries that may be kept of ``[N, C, *P]``.

    Cells have ``block`` times a power of two positions per dimension; ``True`` means one cell, and ``False`` none.

    Example:
        >>> half_in_cells((2, 3, 8), 12, True), half_in_cells((1, 1, 16, 16), 40, 2)
        (CellMeans(sizes=(8,), block=8), CellMeans(sizes=(16, 16), block=4))
        >>> half_in_cells((1, 1, 16, 16), 1, 2) is None
        True
    """
    if not block:
        return None
    sizes, cells = shape[2:], budget / (shape[0] * shape[1]) / 2
    size = max(sizes, default=1) if block is True else block
    while (grid := CellMeans(sizes, size)).cells > cells:
        if grid.cells == 1:
            return None
        size *= 2
    return grid
