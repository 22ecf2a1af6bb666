"""Stretches of planes side by side in memory, as matrix products want them."""

import torch
from torch import Tensor

from .operator import fused


def empty(planes: Tensor, starts: Tensor, length: int, channels_first: bool) -> Tensor:
    """Room for the result."""
    (batch, channels, _), (several, _, count) = planes.shape, starts.shape
    if channels_first:
        return planes.new_empty(channels, several, batch, count * length)
    return planes.new_empty(batch, channels, several, count * length)


@fused(empty)
def gather_stretches(planes: Tensor, starts: Tensor, length: int, channels_first: bool) -> Tensor:
    """Stretches of planes ``[N, C, P]`` that begin at given positions, zeros where these are negative.

    Args:
        planes: The tensor.
        starts: ``[A, N or 1, R]``, below ``P - length + 1``.
        length: ``L``, of each stretch.
        channels_first: Whether channels shall be outermost in memory, not examples.

    Returns:
        ``[C, A, N, R·L]`` or ``[N, C, A, R·L]``.

    Example:
        >>> planes, starts = torch.arange(6.0).view(1, 1, 6), torch.tensor([[[4, 0]], [[1, -1]]])
        >>> gather_stretches(planes, starts, 2, True).view(2, 4)
        tensor([[4., 5., 0., 1.],
                [1., 2., 0., 0.]])
    """
    batch, channels, size = planes.shape
    flat = planes.contiguous()
    if not flat.numel() or not starts.numel():
        return empty(planes, starts, length, channels_first)
    stretches = flat.as_strided((flat.numel() - length + 1, length), (1, 1))
    example = torch.arange(0, batch * channels * size, channels * size, device=planes.device)
    channel = torch.arange(0, channels * size, size, device=planes.device)
    missing = starts < 0
    begins = starts.masked_fill(missing, 0)
    if channels_first:
        index = channel.view(-1, 1, 1, 1) + (begins + example.view(-1, 1))
        none = missing
    else:
        index = (example.view(-1, 1, 1) + begins.transpose(0, 1)).unsqueeze(1) + channel.view(-1, 1, 1)
        none = missing.transpose(0, 1).unsqueeze(1)
    found = stretches.index_select(0, index.flatten()).view(*index.shape, length)
    if planes.device.type != "cpu" or bool(missing.any()):
        found.masked_fill_(none.unsqueeze(-1), 0)
    return found.flatten(3)
