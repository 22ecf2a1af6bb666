"""Entries times numbers on equally spaced levels, by Triton: see :mod:`.times_grid`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import PRECISION, launch, rounded, widen
from .decode_triton import unpacked
from .encode_triton import cut, tile
from .grid_bits import stretched
from .levels import scale_dtype
from .noise import BLOCK
from .packing import packed_size
from .unmask_triton import unmask


def times_grid(values: Tensor, held: Tensor, bits: int, step: float, zero: float) -> Tensor:
    """The same bits as the reference's."""
    source, blocks, (together, columns) = values.contiguous(), triton.cdiv(len(values), BLOCK), tile(BLOCK)
    result, held = torch.empty_like(source), held.contiguous()
    spoilt = unmask(held[packed_size(len(values), bits) :], blocks)
    launch(
        _times_grid, triton.cdiv(blocks, together), values, source, held, spoilt.view(torch.uint8), result, len(values),
        blocks, STEP=step, ZERO=zero, STRETCH=stretched(bits)[1], BITS=bits,
        PRECISE=PRECISION[scale_dtype(values.dtype)], TOGETHER=together, COLUMNS=columns,
    )  # fmt: skip
    return result


@triton.jit(do_not_specialize=("count",))
def _times_grid(
    source, held, spoilt, result, entries, count: tl.int64, STEP: tl.constexpr, ZERO: tl.constexpr,
    STRETCH: tl.constexpr, BITS: tl.constexpr, PRECISE: tl.constexpr, TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number, _, _, size = cut(count, entries, count, COLUMNS, TOGETHER)
    length, narrow = (size + 7) // 8, BITS & -BITS
    marked = tl.load(spoilt + number, mask=size > 0, other=0) != 0
    top: tl.constexpr = (1 << BITS) - 1
    j = tl.arange(0, COLUMNS // 8 * (BITS & -BITS))[None, :]
    for slab in range(0, 8 // (BITS & -BITS)):
        i = slab * narrow * length + j
        inside = (j < narrow * length) & (i < size)
        code = unpacked(held + number * (COLUMNS // 8 * BITS), j, length, inside, slab, BITS)
        level = code.to(tl.float32)
        factor = (tl.where(marked, level * STRETCH, level) - ZERO) * STEP
        factor = tl.where(marked & ((code == top) | (BITS == 1)), float("nan"), factor)
        x = widen(tl.load(source + number * COLUMNS + i, mask=inside, other=0), PRECISE)
        y = rounded(x * factor.to(PRECISE), result.dtype.element_ty)
        tl.store(result + number * COLUMNS + i, y, mask=inside)
