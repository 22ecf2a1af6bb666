"""Entries of each channel times a number, plus another one, by Triton: see :mod:`.scaled`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import launch, tile


def scaled(values: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """The same bits as the reference's."""
    rows, channels, size = values.shape
    result, (together, columns) = torch.empty(values.shape, device=values.device), tile(size)
    launch(
        _scaled, triton.cdiv(rows * channels, together) if size else 0, values.contiguous(), scale.contiguous(),
        shift.contiguous(), result, rows * channels, channels, size, RELU=relu, TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    return result


@triton.jit
def _scaled(
    source, scale, shift, result, rows, channels, size, RELU: tl.constexpr, TOGETHER: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)[:, None]
    channel, at = row % channels, row * size
    a = tl.load(scale + channel)
    b = tl.load(shift + channel)
    for begin in range(0, size, COLUMNS):
        i = begin + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (i < size)
        y = tl.fma(tl.load(source + at + i, mask=inside, other=0), a, b)
        if RELU:
            y = tl.where(y < 0, 0.0, y)
        tl.store(result + at + i, y, mask=inside)
