"""Positions as rows by Triton: see :mod:`.position_rows`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import cut, launch, tile
from .noise import BLOCK, signed, start
from .noise_triton import halves, keys
from .position_rows import position_rows as fused
from .stochastic_cast_triton import to_bfloat16, to_float16


def position_rows(
    planes: Tensor, numbers: Tensor | None, weights: Tensor | None, seed: int, dtype: torch.dtype
) -> Tensor:
    """The same bits as the reference's."""
    if planes.dtype != torch.float32 or dtype not in (torch.bfloat16, torch.float16):
        return fused.reference(planes, numbers, weights, seed, dtype)
    batch, channels, positions = planes.shape
    count = batch * positions if numbers is None else len(numbers)
    rows = torch.empty(count, channels, dtype=dtype, device=planes.device)
    blocks, (together, columns) = triton.cdiv(rows.numel(), BLOCK), tile(BLOCK)
    launch(
        _rows, triton.cdiv(blocks, together), planes, rows if numbers is None else numbers.contiguous(),
        planes if weights is None else weights.contiguous(), rows.view(torch.int16), rows.numel(), blocks, channels,
        positions, *planes.stride(), signed(start(seed)), LISTED=numbers is not None, WEIGHTED=weights is not None,
        HALF=dtype == torch.float16, TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    return rows


@triton.jit(do_not_specialize=("blocks", "start"))
def _rows(
    planes, numbers, weights, out, entries, blocks: tl.int64, channels, positions, example, channel, position,
    start: tl.int64, LISTED: tl.constexpr, WEIGHTED: tl.constexpr, HALF: tl.constexpr, TOGETHER: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    number, _, _, size = cut(blocks, entries, blocks, COLUMNS, TOGETHER)
    low, high = keys(start, number)
    i = tl.arange(0, COLUMNS)[None, :]
    inside, flat = i < size, number * COLUMNS + i
    s = flat // channels
    c = flat - s * channels
    place = tl.load(numbers + s, mask=inside, other=0) if LISTED else s
    n = place // positions
    x = tl.load(planes + n * example + c * channel + (place - n * positions) * position, mask=inside, other=0)
    if WEIGHTED:
        x = x * tl.load(weights + s, mask=inside, other=0)
    bits, noise = x.to(tl.uint32, bitcast=True), halves(i, (size + 1) // 2, low, high)
    cut_off = to_float16(bits, noise) if HALF else to_bfloat16(bits, noise)
    tl.store(out + flat, cut_off.to(tl.uint16).to(tl.int16, bitcast=True), mask=inside)
