"""A control variate: the low-resolution part of a tensor, whose VJPs are strided box sums and small products."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import Side, is_identity, role
from ..tn import IndexPattern, LayerSpec


@dataclass(frozen=True)
class CoarseGrid:
    """Positions in cells of ``block`` per dimension; the last cell of a dimension may be smaller.

    Example:
        >>> grid = CoarseGrid(sizes=(5, 8), block=4)
        >>> grid.shape, grid.means(torch.ones(2, 3, 5, 8)).shape
        ((2, 2), torch.Size([2, 3, 4]))
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

    def means(self, tensor: Tensor) -> Tensor:
        """Mean of each cell of ``[N, C, *P]``, as ``[N, C, cells]``."""
        if self.cells == 1:
            return tensor.flatten(2).mean(2, keepdim=True) if self.sizes else tensor.unsqueeze(2)
        kernel = tuple(min(self.block, size) for size in self.sizes)
        if len(kernel) == 1:
            return F.avg_pool1d(tensor, kernel, kernel, ceil_mode=True)
        if len(kernel) == 3:  # avg_pool3d lacks reduced precision on a CPU; a cell's mean is the mean of its planes'
            planes = F.avg_pool2d(tensor.flatten(1, 2), kernel[1:], kernel[1:], ceil_mode=True)
            tensor, kernel = planes.reshape(*tensor.shape[:3], -1), (kernel[0], 1)
        return F.avg_pool2d(tensor, kernel, kernel, ceil_mode=True).flatten(2)

    def cell_of(self, device: torch.device) -> Tensor:
        """Cell of each flat position, ``[prod(sizes)]``."""
        return _cell_of(self, device)


@lru_cache(maxsize=256)
def _cell_of(grid: CoarseGrid, device: torch.device) -> Tensor:
    cells = torch.zeros(1, dtype=torch.long)
    for size, count in zip(grid.sizes, grid.shape, strict=True):
        cells = (cells[:, None] * count + torch.arange(size) // grid.block).flatten()
    return cells.to(device, non_blocking=True)


@lru_cache(maxsize=256)
def _inverse_sizes(grid: CoarseGrid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One over the number of positions in each cell."""
    return torch.bincount(_cell_of(grid, torch.device("cpu"))).double().reciprocal().to(device, dtype)


def subtract_sample_means(means: Tensor, rows: Tensor, example: Tensor, where: Tensor, grid: CoarseGrid) -> None:
    """Subtract from the mean of each cell the estimated mean of the deviations from it, in place.

    See :func:`randbp.estimators.means.less_sample_means`, which does so for a single cell.

    Args:
        means: ``[N, C, cells]``.
        rows: Kept deviations times their weights, ``[S, C]``.
        example: The example of each row, ``[S]``.
        where: And from which flat position, ``[S]``.
        grid: The cells.
    """
    cell = grid.cell_of(rows.device)[where]
    inverse = _inverse_sizes(grid, rows.dtype, rows.device)[cell]
    by_cell = means.new_zeros(len(means) * grid.cells, means.shape[1])
    by_cell.index_add_(0, example * grid.cells + cell, rows * inverse.unsqueeze(1))
    means -= by_cell.view(len(means), grid.cells, -1).transpose(1, 2)


def affordable_grid(sizes: tuple[int, ...], block: int, budget: float) -> CoarseGrid | None:
    """The finest grid of at most ``budget`` cells whose size is ``block`` times a power of two.

    Example:
        >>> affordable_grid((16, 16), 2, 20)
        CoarseGrid(sizes=(16, 16), block=4)
        >>> affordable_grid((16, 16), 2, 0.5) is None
        True
    """
    while (grid := CoarseGrid(sizes, block)).cells > budget:
        if grid.cells == 1:
            return None
        block *= 2
    return grid


def coarse_weight_vjp(means: Tensor, output_grad: Tensor, grid: CoarseGrid, spec: LayerSpec) -> Tensor:
    """Weight VJP of an input that is constant on the cells of a grid: ``Σ_{n b} means[n c b] Σ_{o, i∈b} Π V_Y``.

    The inner sum, a box sum of the output gradient for each kernel entry, is one small matrix product per dimension.

    Args:
        means: ``[N, C, cells]``.
        output_grad: ``[N, D, *O]``.
        grid: Over the input positions.
        spec: The layer.

    Returns:
        In the shape of the layer's weight.
    """
    sums = output_grad.flatten(0, 1)
    for pattern in reversed(spec.patterns):
        sums = _cell_sums(sums, role(spec, "input"), pattern, grid.block).movedim(-1, 1)
    dims, groups = spec.dims, spec.groups
    sums = sums.reshape(spec.batch_size, groups, -1, *_interleaved(grid, spec))
    order = (1, 2, *range(4, 4 + 2 * dims, 2), 0, *range(3, 3 + 2 * dims, 2))  # [G, D / G, *K, N, *cells]
    left = sums.permute(order).reshape(groups, -1, spec.batch_size * grid.cells)
    right = means.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)  # [G, N · cells, C / G]
    product = torch.bmm(left, right).unflatten(1, (-1, prod(spec.kernel_size))).transpose(2, 3)
    return from_groups(product.reshape(*product.shape[:3], *spec.kernel_size), spec)


def coarse_input_vjp(means: Tensor, weight: Tensor, grid: CoarseGrid, spec: LayerSpec) -> Tensor:
    """Input VJP ``[N, C, *I]`` of an output gradient that is constant on the cells of a grid.

    Args:
        means: ``[N, D, cells]``.
        weight: The layer's weight.
        grid: Over the output positions.
        spec: The layer.
    """
    dims, groups, batch = spec.dims, spec.groups, spec.batch_size
    left = means.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)  # [G, N · cells, D / G]
    product = torch.bmm(left, by_group(weight, spec).flatten(2))
    product = product.reshape(groups, batch, *grid.shape, -1, *spec.kernel_size)
    pairs = (axis for j in range(dims) for axis in (2 + j, 3 + dims + j))
    product = product.permute(1, 0, 2 + dims, *pairs)  # [N, G, C / G, cells_1, K_1, …]
    merged = [cells * kernel for cells, kernel in zip(grid.shape, spec.kernel_size, strict=True)]
    product = product.reshape(batch * spec.in_channels, *merged)
    for pattern in reversed(spec.patterns):
        product = _spread(product, role(spec, "output"), pattern, grid.block).movedim(-1, 1)
    return product.reshape(spec.input_shape)


def coarse_multiply_adds(grid: CoarseGrid, spec: LayerSpec, side: Side) -> int:
    """Multiply-adds of :func:`coarse_weight_vjp` (a grid over inputs) or :func:`coarse_input_vjp` (over outputs)."""
    merged = [cells * kernel for cells, kernel in zip(grid.shape, spec.kernel_size, strict=True)]
    wide = spec.output_size if side == "input" else spec.input_size
    rows = spec.batch_size * (spec.out_channels if side == "input" else spec.in_channels)
    narrow = list(wide) if side == "input" else merged
    total = 0
    for j in reversed(range(spec.dims)):
        if not is_identity(spec.patterns[j]):
            total += rows * prod(narrow) * (merged[j] if side == "input" else wide[j])
        narrow[j] = merged[j] if side == "input" else wide[j]
    return total + spec.batch_size * grid.cells * prod(spec.weight_shape)


def _interleaved(grid: CoarseGrid, spec: LayerSpec) -> tuple[int, ...]:
    return tuple(n for pair in zip(grid.shape, spec.kernel_size, strict=True) for n in pair)


def _cell_sums(tensor: Tensor, leg: Literal["i", "o"], pattern: IndexPattern, block: int) -> Tensor:
    """Sum over positions in the last dimension into the cells of the other leg: ``[…, P]`` to ``[…, cells·K]``."""
    if not is_identity(pattern):
        return tensor @ _boxes(leg, pattern, block, tensor.dtype, tensor.device).flatten(1)
    if missing := -tensor.shape[-1] % block:
        tensor = F.pad(tensor, (0, missing))
    return tensor.unflatten(-1, (-1, block)).sum(-1)


def _spread(tensor: Tensor, leg: Literal["i", "o"], pattern: IndexPattern, block: int) -> Tensor:
    """The transpose of :func:`_cell_sums`."""
    if not is_identity(pattern):
        return tensor @ _boxes(leg, pattern, block, tensor.dtype, tensor.device).flatten(1).t()
    return tensor.repeat_interleave(block, -1)[..., : pattern.input_size]


@lru_cache(maxsize=256)
def _boxes(
    leg: Literal["i", "o"], pattern: IndexPattern, block: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``Π`` summed over the cells of one leg: ``[O, cells, K]`` for cells of ``i``, ``[I, cells, K]`` for ``o``."""
    size, other = pattern.input_size, pattern.output_size
    if leg == "o":
        size, other = other, size
    here = torch.arange(other)
    boxes = torch.zeros(other, -(-size // block), pattern.kernel_size)
    for k in range(pattern.kernel_size):
        partner, valid = pattern.inputs_at(here, k) if leg == "i" else pattern.outputs_at(here, k)
        boxes[here[valid], partner[valid] // block, k] = 1
    return boxes.to(device, dtype, non_blocking=True)
