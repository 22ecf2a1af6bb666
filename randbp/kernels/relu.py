"""ReLU, and one bit per entry for its gradient."""

import torch
from torch import Tensor

from .inside import inside
from .mask_bits import mask_bytes
from .operator import fused


def _fake(values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), values.new_empty(mask_bytes(len(values)), dtype=torch.uint8)


@fused(_fake)
def relu(values: Tensor) -> tuple[Tensor, Tensor]:
    """``max(x, 0)`` as PyTorch computes it, and the bits of where not ``x <= 0``.

    Args:
        values: ``[n]``, of any floating dtype.

    Returns:
        The values, and ``uint8 [⌈n / 8⌉]`` (:mod:`.mask_bits`).

    Example:
        >>> relu(torch.tensor([1.0, -1.0, torch.nan]))
        (tensor([1., 0., nan]), tensor([5], dtype=torch.uint8))
    """
    return torch.relu(values), inside(values, "not_under", 0.0, 0.0)
