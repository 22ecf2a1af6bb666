"""Tensors ``[N, P, C, S]``, channels among positions before and behind them, cut into pieces."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .levels import PIECE
from .noise import BLOCK


def pieces(shape: torch.Size, device: torch.device) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts of the first three dimensions that fit a processor's cache and lie in memory without gaps, in its order.

    Example:
        >>> [cut[0] for cut in pieces(torch.Size([3, 1, 1, 2**25]), torch.device("cuda"))]
        [slice(0, 2, None), slice(2, 4, None)]
    """
    examples, before, channels, after = shape
    most = PIECE if device.type == "cpu" else 2**26
    every = slice(None)
    if not shape.numel():
        return
    if (together := most // (before * channels * after)) > 0:
        yield from ((slice(n, n + together), every, every) for n in range(0, examples, together))
        return
    count, size = (before, channels * after) if before > 1 else (channels, after)
    each = max(1, most // size)
    for n in range(examples):
        for first in range(0, count, each):
            some = slice(first, first + each)
            yield (slice(n, n + 1), some, every) if before > 1 else (slice(n, n + 1), every, some)


def of_entries(values: Tensor, first: int, count: int) -> Tensor:
    """Values ``[blocks]`` for some entries that follow each other: ``[count]``, a copy.

    Example:
        >>> of_entries(torch.tensor([1.0, 2.0]), first=254, count=4)
        tensor([1., 1., 2., 2.])
    """
    start = first // BLOCK
    some = values[start : -(-(first + count) // BLOCK)].repeat_interleave(BLOCK)
    return some[first - start * BLOCK :][:count]
