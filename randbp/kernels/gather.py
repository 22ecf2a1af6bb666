"""Kept positions of planes beside the planes' sums, in one pass over memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operator import fused


def results(planes: Tensor, numbers: Tensor, length: int, weights: Any, order: str, what: str) -> tuple[Tensor, ...]:
    """Empty tensors for what is kept, and zeros for means and sums."""
    batch, channels, _ = planes.shape
    count = numbers.shape[1] * length
    sizes = {
        "examples": (batch, channels, count),
        "channels": (channels, batch, count),
        "rows": (batch, count, channels),
    }
    return planes.new_empty(sizes[order]), planes.new_zeros(batch, channels), planes.new_zeros(batch, channels)


def as_planes(kept: Tensor, order: str) -> Tensor:
    """What was gathered, as ``[N, C, S]``."""
    if order == "examples":
        return kept
    return kept.transpose(0, 1) if order == "channels" else kept.transpose(1, 2)


def on_device(weights: Sequence[float], like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype and on the device of another one, without waiting for the device."""
    numbers = torch.tensor(weights, dtype=like.dtype)
    return numbers.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else numbers


@fused(results)
def gather_planes(
    planes: Tensor, numbers: Tensor, length: int, weights: Sequence[float], order: str, what: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of planes ``[N, C, P]`` at kept positions, beside the planes' means.

    Args:
        planes: The tensor.
        numbers: ``[N or 1, R]``: which stretches of ``length`` neighbours are kept, ``S`` positions in all.
        length: Of a stretch.
        weights: Of each stretch, for a weighted sum of what is kept.
        order: What shall be outermost in memory: ``"examples"``, ``"channels"`` or ``"rows"`` (of positions).
        what: ``"entries"`` only, with their planes' ``"means"``, or as ``"deviations"`` from these.

    Returns:
        What is kept, ``[N, C, S]``, ``[C, N, S]`` or ``[N, S, C]``; means ``[N, C]``, zeros with ``"entries"``; the
        weighted sums of deviations ``[N, C]``, zeros without.

    Example:
        >>> planes = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
        >>> gather_planes(planes, torch.tensor([[1]]), 2, [0.5], "examples", "deviations")
        (tensor([[[0., 3.]]]), tensor([[3.]]), tensor([[1.5000]]))
    """
    kept, means, sums = results(planes, numbers, length, weights, order, what)
    within = torch.arange(length, device=numbers.device)
    positions = (numbers.unsqueeze(2) * length + within).flatten(1)
    found = planes.gather(2, positions.unsqueeze(1).expand(*planes.shape[:2], -1))
    if what != "entries":
        means = planes.mean(2)
    if what == "deviations":
        found.sub_(means.unsqueeze(2))
        sums = found @ on_device(weights, found).repeat_interleave(length)
    as_planes(kept, order).copy_(found)
    return kept, means, sums
