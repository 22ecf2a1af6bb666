"""Noise of minibatch gradients: their distance from the gradient over the whole distribution."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .objective import batch_size, examples

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def parts_of(batch: Any, micro_batches: int) -> list[Any]:
    """Split a batch into an even number of equal micro-batches, at most as many as wanted; none if fewer than four.

    Only tensors as long as the batch are split, and what remains of them is left out.

    Example:
        >>> [x.tolist() for x, _ in parts_of((torch.arange(9), "label"), 5)]
        [[0, 1], [2, 3], [4, 5], [6, 7]]
    """
    size = batch_size(batch)
    count = min(micro_batches, size) // 2 * 2
    if count < 4:
        return []
    each = size // count
    return [examples(batch, size, slice(j * each, (j + 1) * each)) for j in range(count)]


def squared_differences(gradients: Callable[[Any], list[Tensor]], parts: list[Any]) -> Tensor:
    """``‖h_2j - h_2j-1‖²`` of the gradients of successive parts, ``[pairs, parameters]``, float64 on the CPU.

    Example:
        >>> squared_differences(lambda part: [part.mean(0)], [torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0]])])
        tensor([[5.]], dtype=torch.float64)
    """
    found = []
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        pairs = zip(gradients(first), gradients(second), strict=True)
        found.append(torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]))
    return torch.stack(found).cpu()
