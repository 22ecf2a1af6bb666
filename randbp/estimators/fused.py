"""Sketches and weight VJPs of kept positions in one pass over memory, where kernels serve that."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.gather import as_planes, gather_planes
from ..tn.execute.dense import add_product
from ..tn.execute.rows import pieces
from .positions import Order, flat_spatial, memory_rows
from .runs import Runs, joined

SMALLEST = 128
"""Positions of a plane from which on reading planes one by one pays."""


def gathers(tensor: Tensor) -> bool:
    """Whether kept positions of ``[N, C, *P]`` are read by a fused kernel: large planes, one behind the other."""
    if gather_planes.backend(tensor.device.type) == "reference" or tensor.dtype not in (torch.float32, torch.float64):
        return False
    return tensor.is_contiguous() and memory_rows(tensor) is None and flat_spatial(tensor).shape[2] >= SMALLEST


def gather_deviations(
    tensor: Tensor, where: Sequence[Runs], sizes: Sequence[int], order: Order, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Kept entries of all classes ``[N, C, S]``, less their planes' means if centred, beside these and their own means.

    Args:
        tensor: ``[N, C, *P]``, as `gathers` takes it.
        where: Flat positions of each class.
        sizes: Positions of each class, which their means count by.
        order: How what is kept shall lie in memory.
        centred: Whether to subtract means.
    """
    runs, total = joined(where), sum(sizes)
    weights: list[float] = []
    for each, size in zip(where, sizes, strict=True):
        weights += [size / (total * each.count)] * (each.count // runs.length)
    what = "deviations" if centred else "entries"
    kept, means, sums = gather_planes(flat_spatial(tensor), runs.numbers, runs.length, weights, order, what)
    return as_planes(kept, order), means, sums


def pointwise_weight_vjp(
    rows: Tensor, local: Runs, weight: float, mean: Tensor | None, output_grad: Tensor, by_example: bool
) -> Tensor:
    """``[D, C]``: kept rows ``[N, S, C]`` times the output rows at the same positions, plus the VJP of the mean.

    Args:
        rows: Kept rows.
        local: Which positions they are.
        weight: Of each kept entry.
        mean: ``[N, C]``, what lies at all positions beside; zero if ``None``.
        output_grad: ``[N, D, *O]``, as `gathers` takes it.
        by_example: Whether products are small, so that each example has one of its own.
    """
    flat = flat_spatial(output_grad)
    batch, wide, size = flat.shape
    narrow = rows.shape[2]
    total, means = flat.new_empty(wide, narrow), flat.new_empty(batch, wide)
    if not batch * local.count:
        total.zero_()
    order, what = "examples" if by_example else "channels", "entries" if mean is None else "means"
    for part in pieces(batch, local.count * wide, flat.device):
        some = local.of(part)
        met, means[part], _ = gather_planes(
            flat[part], some.numbers, local.length, [0.0] * some.numbers.shape[1], order, what
        )
        first = part.start == 0
        if by_example:
            product = torch.bmm(met, rows[part]).sum(0)
            total.copy_(product) if first else total.add_(product)
        else:
            add_product(total, met.flatten(1), rows[part].flatten(0, 1), first)
    total *= weight
    return total if mean is None else total.addmm_(means.t(), mean, alpha=size)
