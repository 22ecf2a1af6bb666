"""Kept positions of planes by Triton: see :mod:`.gather`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import PRECISION, divided, launch, tile
from .gather import as_planes, on_device, results
from .gather import gather_planes as fused


def gather_planes(planes, numbers, length, weights, order, what) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    if planes.dtype not in PRECISION:
        return fused.reference(planes, numbers, length, weights, order, what)
    batch, channels, positions = planes.shape
    count, (together, columns) = numbers.shape[1] * length, tile(positions)
    if planes.dtype == torch.float64:  # fewer planes at once, whose sums take two registers each
        together = max(1, together // 2)
    kept, means, sums = results(planes, numbers, length, weights, order, what)
    launch(
        _gather, triton.cdiv(batch * channels, together) if planes.numel() else 0, planes.contiguous(),
        numbers.contiguous(), on_device(weights, planes) if what == "deviations" else means, kept, means, sums,
        batch * channels, channels, positions, count, length, numbers.shape[1] if len(numbers) > 1 else 0,
        *as_planes(kept, order).stride(), MEANS=what != "entries", CENTRES=what == "deviations",
        TOGETHER=together, COLUMNS=columns, PRECISE=planes.dtype,
    )  # fmt: skip
    return kept, means, sums


@triton.jit
def _gather(
    planes, numbers, weights, kept, means, sums, rows, channels, positions, count, length, stretches, example, channel,
    position, MEANS: tl.constexpr, CENTRES: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)[:, None]
    n = row // channels
    plane, out = planes + row * positions, kept + n * example + (row - n * channels) * channel
    mean = tl.zeros((TOGETHER, 1), PRECISE)
    if MEANS:
        total = tl.zeros((TOGETHER, COLUMNS), PRECISE)
        for begin in range(0, positions, COLUMNS):
            i = begin + tl.arange(0, COLUMNS)[None, :]
            total += tl.load(plane + i, mask=(row < rows) & (i < positions), other=0)
        mean = divided(tl.sum(total, 1, keep_dims=True), tl.zeros_like(mean) + positions)
        tl.store(means + row, mean, mask=row < rows)
    total = tl.zeros((TOGETHER, COLUMNS), PRECISE)
    for begin in range(0, count, COLUMNS):
        s = begin + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (s < count)
        stretch = s // length
        start = tl.load(numbers + n * stretches + stretch, mask=inside, other=0) * length
        x = tl.load(plane + start + (s - stretch * length), mask=inside, other=0)
        if CENTRES:
            x = x - mean
            total += tl.where(inside, x * tl.load(weights + stretch, mask=inside, other=0), 0)
        tl.store(out + s.to(tl.int64) * position, x, mask=inside)
    if CENTRES:
        tl.store(sums + row, tl.sum(total, 1, keep_dims=True), mask=row < rows)
