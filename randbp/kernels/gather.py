"""Gathering of kept positions of planes, with the planes' means, in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from .operator import fused


def results(planes: Tensor, numbers: Tensor, length: int, order: str, what: Any) -> tuple[Tensor, Tensor]:
    """An empty tensor for what is kept, and zeros for means."""
    batch, channels, _ = planes.shape
    first, second = (batch, channels) if order == "examples" else (channels, batch)
    return planes.new_empty(first, second, numbers.shape[1] * length), planes.new_zeros(batch, channels)


@fused(results)
def gather_planes(planes: Tensor, numbers: Tensor, length: int, order: str, what: str) -> tuple[Tensor, Tensor]:
    """Gather entries of planes ``[N, C, P]`` at kept positions, and take the planes' means.

    Args:
        planes: ``[N, C, P]``, of any floating dtype.
        numbers: ``[N or 1, R]``: which segments of ``length`` neighbours are kept, ``S`` positions in all.
        length: Positions of a segment.
        order: The outermost dimension of the result in memory: ``"examples"`` or ``"channels"``.
        what: ``"entries"`` only, with their planes' ``"means"``, or as ``"deviations"`` from these.

    Returns:
        What is kept, ``[N, C, S]`` or ``[C, N, S]``; means ``[N, C]``, zeros with ``"entries"``.

    Example:
        >>> planes = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
        >>> gather_planes(planes, torch.tensor([[1]]), 2, "examples", "deviations")
        (tensor([[[0., 3.]]]), tensor([[3.]]))
    """
    kept, means = results(planes, numbers, length, order, what)
    within = torch.arange(length, device=numbers.device)
    positions = (numbers.unsqueeze(2) * length + within).flatten(1)
    found = planes.gather(2, positions.unsqueeze(1).expand(*planes.shape[:2], -1))
    if what != "entries":
        means = planes.mean(2)
    if what == "deviations":
        found.sub_(means.unsqueeze(2))
    (kept if order == "examples" else kept.transpose(0, 1)).copy_(found)
    return kept, means
