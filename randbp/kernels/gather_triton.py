"""Kept positions of planes by Triton: see :mod:`.gather`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import PRECISION, divided, launch, tile
from .gather import gather_planes as fused
from .gather import results


def gather_planes(planes, numbers, length, order, what) -> tuple[Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    if planes.dtype not in PRECISION:
        return fused.reference(planes, numbers, length, order, what)
    batch, channels, positions = planes.shape
    together, columns = tile(positions)
    if planes.dtype == torch.float64:  # fewer planes at once, whose sums take two registers each
        together = max(1, together // 2)
    kept, means = results(planes, numbers, length, order, what)
    count, strides = kept.shape[2], kept.stride()[:2]
    launch(
        _gather, triton.cdiv(batch * channels, together) if planes.numel() else 0, planes.contiguous(),
        numbers.contiguous(), kept, means, batch * channels, channels, positions, count, length,
        numbers.shape[1] if len(numbers) > 1 else 0, *(strides if order == "examples" else reversed(strides)),
        MEANS=what != "entries", CENTRES=what == "deviations", TOGETHER=together, COLUMNS=columns,
        PRECISE=planes.dtype,
    )  # fmt: skip
    return kept, means


@triton.jit
def _gather(
    planes, numbers, kept, means, rows, channels, positions, count, length, segments, example, channel,
    MEANS: tl.constexpr, CENTRES: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr, PRECISE: tl.constexpr,
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
    for begin in range(0, count, COLUMNS):
        s = begin + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (s < count)
        segment = s // length
        start = tl.load(numbers + n * segments + segment, mask=inside, other=0) * length
        x = tl.load(plane + start + (s - segment * length), mask=inside, other=0)
        tl.store(out + s, x - mean if CENTRES else x, mask=inside)
