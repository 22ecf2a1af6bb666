"""Some positions of a tensor as rows of a matrix, weighted, and rounded stochastically to a narrow type."""

import torch
from torch import Tensor

from .operator import fused
from .stochastic_cast import narrow


@fused(
    lambda planes, numbers, weights, seed, dtype: planes.new_empty(
        planes.shape[0] * planes.shape[2] if numbers is None else len(numbers), planes.shape[1], dtype=dtype
    )
)
def position_rows(
    planes: Tensor, numbers: Tensor | None, weights: Tensor | None, seed: int, dtype: torch.dtype
) -> Tensor:
    """``rows[s, c] = weights[s] · planes[n, c, p]`` with ``numbers[s] = n P + p``.

    Args:
        planes: ``[N, C, P]``, in any memory order.
        numbers: ``int64 [S]``: the positions, numbered through the examples; ``None`` for all of them.
        weights: ``[S]``, in the precision of the planes, single for those of 16 bits; ``None`` for ones.
        seed: Of the noise that rounds.
        dtype: Of the result: that of ``planes``; or of 16 bits, to which single precision is rounded as by
            :func:`.stochastic_cast.narrow`.

    Returns:
        ``[S, C]``.

    Example:
        >>> planes = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> position_rows(planes, torch.tensor([1]), torch.tensor([2.0]), 0, torch.float32)
        tensor([[4., 8.]])
    """
    batch, channels, positions = planes.shape
    if numbers is None:
        rows = planes.transpose(1, 2).reshape(batch * positions, channels)
    elif planes.stride(1) == 1:
        rows = planes.transpose(1, 2).reshape(batch * positions, channels).index_select(0, numbers)
    else:
        rows = planes[numbers // max(1, positions), :, numbers % max(1, positions)]
    if weights is not None:
        rows = (
            rows.float().mul(weights.unsqueeze(1)).to(rows.dtype) if rows.itemsize == 2 else rows * weights.unsqueeze(1)
        )
    return rows.contiguous() if rows.dtype == dtype else narrow(rows.contiguous(), seed, 0, dtype)
