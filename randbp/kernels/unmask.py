"""A ``bool`` tensor from one bit per entry."""

import torch
from torch import Tensor

from .mask_bits import bytes_of, mask_of, pieces
from .operator import fused


def _fake(bits: Tensor, count: int) -> Tensor:
    return bits.new_empty(count, dtype=torch.bool)


@fused(_fake)
def unmask(bits: Tensor, count: int) -> Tensor:
    """The mask ``bool [n]`` of which :func:`.inside` made bits.

    Args:
        bits: ``uint8 [⌈n / 8⌉]``.
        count: Number ``n`` of entries.

    Example:
        >>> unmask(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    mask = torch.empty(count, dtype=torch.bool, device=bits.device)
    for part in pieces(count, bits.device):
        mask[part] = mask_of(bits[bytes_of(part)], part.stop - part.start)
    return mask
