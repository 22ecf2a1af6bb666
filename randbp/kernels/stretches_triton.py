"""Stretches of planes by Triton: see :mod:`.stretches`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import launch
from .encode_triton import tile
from .stretches import empty

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What entries of so many bytes are copied as."""


def gather_stretches(planes: Tensor, starts: Tensor, length: int, channels_first: bool) -> Tensor:
    """The same bits as the reference's."""
    (batch, channels, positions), (several, examples, count) = planes.shape, starts.shape
    result, as_integers = empty(planes, starts, length, channels_first), _INTEGERS[planes.element_size()]
    size, rows = count * length, batch * channels * several
    together, columns = tile(size)
    example, channel, entry = (
        (size, several * batch * size, batch * size)
        if channels_first
        else (channels * several * size, several * size, size)
    )
    launch(
        _stretches, triton.cdiv(rows, together) if size else 0, planes, planes.contiguous().view(as_integers),
        starts.contiguous(), result.view(as_integers), rows, channels, several, positions, count, length,
        count if examples > 1 else 0, examples * count, example, channel, entry, TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    return result


@triton.jit
def _stretches(
    planes, starts, result, rows, channels, several, positions, count, length, starts_of_example, starts_of_entry,
    example, channel, entry, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)[:, None]
    number = row // several
    a, n = row - number * several, number // channels
    plane, begins = planes + number * positions, starts + n * starts_of_example + a * starts_of_entry
    out = result + n * example + (number - n * channels) * channel + a * entry
    for begin in range(0, count * length, COLUMNS):
        s = begin + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (s < count * length)
        stretch = s // length
        first = tl.load(begins + stretch, mask=inside, other=-1)
        x = tl.load(plane + first + (s - stretch * length), mask=inside & (first >= 0), other=0)
        tl.store(out + s, x, mask=inside)
