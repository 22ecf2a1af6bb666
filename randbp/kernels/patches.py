"""Patches of rows: what a few output positions of a convolution see of its input, and where it goes back."""

import torch
from torch import Tensor

from .operator import fused


@fused(lambda rows, numbers, table, count: rows.new_empty(len(numbers), table.shape[1], rows.shape[1]))
def gather_patches(rows: Tensor, numbers: Tensor, table: Tensor, count: int) -> Tensor:
    """``patches[s, k] = rows[n I + table[o, k]]`` with ``numbers[s] = n O + o``; zeros where the table has -1.

    Args:
        rows: ``[N I, C]``, any floating dtype: the positions of all examples, ``I`` of each.
        numbers: ``int64 [S]``: output positions, numbered through the examples.
        table: ``int32 [O, K]``: the input position that each output position meets through each kernel entry, or -1.
        count: ``I``.

    Returns:
        ``[S, K, C]``.

    Example:
        >>> table = torch.tensor([[0, 1], [1, -1]], dtype=torch.int32)
        >>> gather_patches(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([3]), table, 2).flatten().tolist()
        [4.0, 0.0]
    """
    index = _met(numbers, table, count).flatten()
    found = rows.index_select(0, index.clamp_min(0)) if len(rows) else rows.new_zeros(len(index), rows.shape[1])
    return found.masked_fill_((index < 0).unsqueeze(1), 0).view(len(numbers), table.shape[1], rows.shape[1])


@fused(
    lambda patches, numbers, table, count, examples: patches.new_empty(
        examples, patches.shape[2], count, dtype=sum_dtype(patches.dtype)
    )
)
def scatter_patches(patches: Tensor, numbers: Tensor, table: Tensor, count: int, examples: int) -> Tensor:
    """``planes[n, :, i] = Σ_{s k: numbers[s] = n O + o, table[o, k] = i} patches[s, k]``: the adjoint of the gather.

    Args:
        patches: ``[S, K, C]``, any floating dtype.
        numbers: ``int64 [S]``: output positions, numbered through the examples.
        table: ``int32 [O, K]``: the input position that each output position meets through each kernel entry, or -1.
        count: Input positions ``I`` of an example.
        examples: Number of examples ``N``.

    Returns:
        ``[N, C, I]``, summed in an order of the backend's, in single precision for 16 bits.

    Example:
        >>> table = torch.tensor([[0, 1], [1, -1]], dtype=torch.int32)
        >>> scatter_patches(torch.ones(2, 2, 1), torch.tensor([0, 1]), table, 2, 1).tolist()
        [[[1.0, 2.0]]]
    """
    index, rows, width = _met(numbers, table, count).flatten(), examples * count, patches.shape[2]
    sums = patches.new_zeros(rows + 1, width, dtype=sum_dtype(patches.dtype))
    sums.index_add_(0, torch.where(index < 0, rows, index), patches.reshape(len(index), width).to(sums.dtype))
    return sums[:rows].view(examples, count, width).transpose(1, 2).contiguous()


def _met(numbers: Tensor, table: Tensor, count: int) -> Tensor:
    """The rows ``[S, K]`` that output positions meet, or -1."""
    example = torch.div(numbers, len(table), rounding_mode="floor")
    met = table.index_select(0, numbers - example * len(table))
    return torch.where(met < 0, -1, met + (example * count).unsqueeze(1))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of a type are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
