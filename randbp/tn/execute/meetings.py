"""Weight gradients of depthwise convolutions by one fused operation on the pairs of positions that meet."""

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from ...kernels import pair_sums
from ...layers.pattern import IndexPattern
from ..planning import machine


def serve(patterns: tuple[IndexPattern, ...]) -> bool:
    """Whether a compiled version serves the operation, and there are few enough pairs to list them."""
    return prod(p.nonzeros for p in patterns) <= machine.cpu.meetings and pair_sums.backend("cpu") == "numba"


def work(patterns: tuple[IndexPattern, ...], examples: int) -> tuple[int, float]:
    """Multiply-adds per example and group, and time per group of operands that must be laid out."""
    cpu, count = machine.cpu, prod(p.nonzeros for p in patterns)
    laid = sum(prod(getattr(p, side) for p in patterns) for side in ("input_size", "output_size"))
    return count, examples * (cpu.meeting * count + cpu.meeting_laid * laid) + cpu.meeting_start


def meeting_sums(patterns: tuple[IndexPattern, ...]) -> Callable[..., Tensor]:
    """``(x [N, G, *I], y [N, G, *O]) → w [G, *K]``; without a copy where channels lie innermost in memory."""
    kernels = tuple(p.kernel_size for p in patterns)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        left, right = (tensor.movedim(1, -1).flatten(1, -2) for tensor in (x, y))
        # The compiled operation has no derivative, the reference has.
        differentiable = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        sums = (pair_sums.reference if differentiable else pair_sums)(left, right, *_meeting(patterns))
        return sums.unflatten(1, kernels)

    return kernel


@lru_cache(maxsize=128)
def _meeting(patterns: tuple[IndexPattern, ...]) -> tuple[Tensor, Tensor]:
    """Flat positions ``[P, 2]`` of inputs and outputs that meet, kernel entry by kernel entry, and where each begins.

    Example:
        >>> _meeting((IndexPattern(2, 2, 3, padding=1),))
        (tensor([[0, 1],
                [0, 0],
                [1, 1],
                [1, 0]]), tensor([0, 1, 3, 4]))
    """
    found = []
    for entry in product(*(range(p.kernel_size) for p in patterns)):
        o, i = torch.zeros(2, 1, dtype=torch.int64)
        for p, k in zip(patterns, entry, strict=True):
            outputs, inputs = (torch.tensor(positions, dtype=torch.int64) for positions in p.met(k))
            i = (i.unsqueeze(1) * p.input_size + inputs).flatten()
            o = (o.unsqueeze(1) * p.output_size + outputs).flatten()
        found.append(torch.stack((i, o), 1))
    return torch.cat(found), torch.tensor([0, *map(len, found)]).cumsum(0)
