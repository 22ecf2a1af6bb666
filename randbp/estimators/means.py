"""Means of positions, used as control variates: they are kept exactly, and only deviations from them are estimated."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..tn.execute.dense import sums_by_products
from .positions import Part, flat_spatial

Grid = tuple[slice, ...]


@lru_cache(maxsize=512)
def sampled_grid(parts: tuple[Part, ...]) -> Grid | None:
    """Sampled positions as one slice per dimension; ``None`` if they are not evenly spaced.

    Example:
        >>> from randbp import tn
        >>> downsampling = tn.ConvSpec((1, 1, 9), out_channels=1, kernel_size=1, stride=2)
        >>> sampled_grid(tuple((each, 1) for each in tn.position_classes(downsampling, "input")))
        (slice(0, 9, 2),)
    """
    slices = []
    for dim in range(len(parts[0][0].positions)):
        found = sorted({place for positions, _ in parts for place in positions.positions[dim]})
        step = found[1] - found[0] if len(found) > 1 else 1
        if found != list(range(found[0], found[-1] + 1, step)):
            return None
        slices.append(slice(found[0], found[-1] + 1, step))
    return tuple(slices)


def position_means(tensor: Tensor) -> Tensor:
    """Mean ``[N, C]`` of ``[N, C, *P]`` over all positions, computed as a product where that is faster.

    Example:
        >>> position_means(torch.arange(6.0).view(1, 2, 3))
        tensor([[1., 4.]])
    """
    flat = flat_spatial(tensor)
    if not sums_by_products(flat.dtype, flat.device) or not flat.shape[2]:
        return flat.mean(2)
    return torch.matmul(flat, flat.new_full((flat.shape[2],), 1 / flat.shape[2]))


def covers(grid: Grid | None, sizes: Sequence[int]) -> bool:
    """Whether a grid consists of all positions of an image; ``None`` does."""
    return grid is None or all(range(size)[some] == range(size) for some, size in zip(grid, sizes, strict=True))


def example_means(tensor: Tensor, grid: Grid | None) -> Tensor:
    """Mean ``[N, C]`` of ``[N, C, *P]`` over the positions of a grid, or over all positions if there is no grid."""
    if grid is None or covers(grid, tensor.shape[2:]):
        return position_means(tensor)
    return tensor[(slice(None), slice(None), *grid)].mean(tuple(range(2, tensor.dim())))


def less_sample_means(means: Tensor, deviations: Sequence[Tensor], sizes: Sequence[int], dim: int) -> Tensor:
    """Means less the estimated mean of the deviations from them, which is zero before sampling.

    Where ``m`` is a mean over the very positions that are sampled, ``Σ_i (X - m) = 0``, so the other factor ``V`` of
    each product may lose its own mean, too: ``Σ_i (X - m) V = Σ_i (X - m)(V - mean V)``, of which a sample has less
    variance. What the kept deviations multiply ``mean V`` by is their mean, so taking that from ``m`` does it all.

    Args:
        means: ``m``, ``[N, C]``.
        deviations: Kept ones of each class of positions, ``[N, S, C]`` or ``[N, C, S]``.
        sizes: Positions of each class.
        dim: The dimension ``S``.
    """
    total = sum(sizes)
    for kept, size in zip(deviations, sizes, strict=True):
        means = means.sub(_means(kept if dim == 2 else kept.transpose(1, 2)), alpha=size / total)
    return means


def _means(columns: Tensor) -> Tensor:
    """Mean ``[N, C]`` of ``[N, C, S]`` in any memory order."""
    channels_first = columns.transpose(0, 1)
    if channels_first.is_contiguous():
        return position_means(channels_first).t()
    return position_means(columns) if columns.is_contiguous() else columns.mean(2)
