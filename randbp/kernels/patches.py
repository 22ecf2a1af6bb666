"""Patches of rows: what a few output positions of a convolution see of its input, and where it goes back."""

import torch
from torch import Tensor

from .operator import fused


@fused(lambda rows, index: rows.new_empty(*index.shape, rows.shape[1]))
def gather_patches(rows: Tensor, index: Tensor) -> Tensor:
    """``patches[s, k] = rows[index[s, k]]``, zeros where the index is negative.

    Args:
        rows: ``[R, C]``, any floating dtype.
        index: ``int32 [S, K]``: the row that patch ``s`` has at its kernel entry ``k``, or -1.

    Returns:
        ``[S, K, C]``.

    Example:
        >>> gather_patches(torch.tensor([[1.0], [2.0]]), torch.tensor([[1, -1]], dtype=torch.int32)).flatten().tolist()
        [2.0, 0.0]
    """
    flat = index.flatten()
    found = rows.index_select(0, flat.clamp_min(0)) if len(rows) else rows.new_zeros(len(flat), rows.shape[1])
    return found.masked_fill_((flat < 0).unsqueeze(1), 0).view(*index.shape, -1)


@fused(lambda patches, index, count: patches.new_empty(count, patches.shape[2], dtype=sum_dtype(patches.dtype)))
def scatter_patches(patches: Tensor, index: Tensor, count: int) -> Tensor:
    """``rows[r] = Σ_{s k: index[s, k] = r} patches[s, k]``, the adjoint of :func:`gather_patches`.

    Args:
        patches: ``[S, K, C]``, any floating dtype.
        index: ``int32 [S, K]``, or -1 for what is dropped.
        count: Number of rows ``R``.

    Returns:
        ``[R, C]``, summed in the order of ``s`` and ``k`` (a GPU has none), in single precision for 16 bits.

    Example:
        >>> scatter_patches(torch.ones(2, 2, 1), torch.tensor([[1, -1], [1, 0]], dtype=torch.int32), 2).tolist()
        [[1.0], [2.0]]
    """
    flat, width = index.flatten(), patches.shape[2]
    sums = patches.new_zeros(count + 1, width, dtype=sum_dtype(patches.dtype))
    sums.index_add_(0, torch.where(flat < 0, count, flat), patches.reshape(-1, width).to(sums.dtype))
    return sums[:count]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of a type are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
