"""Patches of rows by Triton: see :mod:`.patches`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import launch, tile, widen
from .patches import scatter_patches as scattered
from .patches import sum_dtype


def gather_patches(rows: Tensor, numbers: Tensor, table: Tensor, count: int) -> Tensor:
    """The same bits as the reference's."""
    patches = rows.new_empty(len(numbers), table.shape[1], rows.shape[1])
    items, width = patches.shape[0] * patches.shape[1], patches.shape[2]
    together, columns = tile(width)
    launch(
        _gather, triton.cdiv(items, together) if patches.numel() else 0, rows.contiguous(), numbers.contiguous(),
        table.contiguous(), patches, items, len(table), table.shape[1], count, width, TOGETHER=together,
        COLUMNS=columns,
    )  # fmt: skip
    return patches


def scatter_patches(patches: Tensor, numbers: Tensor, table: Tensor, count: int, examples: int) -> Tensor:
    """The same as the reference's, up to the order of the sums, which is another one at each call."""
    if torch.are_deterministic_algorithms_enabled():
        return scattered.reference(patches, numbers, table, count, examples)
    items, width = patches.shape[0] * patches.shape[1], patches.shape[2]
    sums = patches.new_zeros(examples * count, width, dtype=sum_dtype(patches.dtype))
    together, columns = tile(width)
    launch(
        _scatter, triton.cdiv(items, together) if patches.numel() else 0, patches.contiguous(), numbers.contiguous(),
        table.contiguous(), sums, items, len(table), table.shape[1], count, width, TOGETHER=together,
        COLUMNS=columns, PRECISE=sums.dtype,
    )  # fmt: skip
    return sums.view(examples, count, width).transpose(1, 2).contiguous()


@triton.jit
def _met(numbers, table, items, outputs, entries, count, TOGETHER: tl.constexpr):
    """Places in the patches, ``[TOGETHER, 1]``, whether these exist, and the rows that they meet, or -1."""
    item = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)[:, None]
    inside = item < items
    s = item // entries
    number = tl.load(numbers + s, mask=inside, other=0)
    example = number // outputs
    place = (number - example * outputs) * entries + (item - s * entries)
    met = tl.load(table + place, mask=inside, other=-1).to(tl.int64)
    return item, inside, tl.where(met < 0, -1, met + example * count)


@triton.jit
def _gather(
    rows, numbers, table, patches, items, outputs, entries, count, width, TOGETHER: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    item, inside, row = _met(numbers, table, items, outputs, entries, count, TOGETHER)
    for begin in range(0, width, COLUMNS):
        c = begin + tl.arange(0, COLUMNS)[None, :]
        x = tl.load(rows + row * width + c, mask=inside & (row >= 0) & (c < width), other=0)
        tl.store(patches + item * width + c, x, mask=inside & (c < width))


@triton.jit
def _scatter(
    patches, numbers, table, sums, items, outputs, entries, count, width, TOGETHER: tl.constexpr,
    COLUMNS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    item, inside, row = _met(numbers, table, items, outputs, entries, count, TOGETHER)
    for begin in range(0, width, COLUMNS):
        c = begin + tl.arange(0, COLUMNS)[None, :]
        used = inside & (row >= 0) & (c < width)
        x = widen(tl.load(patches + item * width + c, mask=used, other=0), PRECISE)
        tl.atomic_add(sums + row * width + c, x, mask=used)
