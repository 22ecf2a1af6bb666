"""Which entries pass a comparison, by Triton: see :mod:`.inside`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import PRECISION, launch, widen
from .levels import scale_dtype
from .mask_bits import BLOCK, mask_bytes


def inside(values: Tensor, test: str, low: float, high: float) -> Tensor:
    """The same bits as the reference's."""
    bits = torch.empty(mask_bytes(len(values)), dtype=torch.uint8, device=values.device)
    if values.dtype == torch.bool:
        pack_mask(values, bits)
    else:
        low, high = torch.tensor([low, high], dtype=values.dtype).tolist()
        launch(
            _inside, triton.cdiv(len(values), BLOCK), values, values.contiguous(), bits, len(values), TEST=test,
            LOW=low, HIGH=high, PRECISE=PRECISION[scale_dtype(values.dtype)], BLOCK=BLOCK,
        )  # fmt: skip
    return bits


def pack_mask(mask: Tensor, bits: Tensor) -> None:
    """Fill ``bits`` with those of a ``bool`` tensor."""
    source = mask.contiguous().view(torch.uint8)
    launch(
        _inside, triton.cdiv(len(mask), BLOCK), mask, source, bits, len(mask), TEST="true", LOW=0.0, HIGH=0.0,
        PRECISE=tl.float32, BLOCK=BLOCK,
    )  # fmt: skip


@triton.jit
def _inside(
    source, bits, count, TEST: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, PRECISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at, length, size = place_of(count, BLOCK)
    j = tl.arange(0, BLOCK // 8)
    packed = tl.zeros((BLOCK // 8,), tl.int32)
    for k in range(0, 8):
        i = k * length + j
        there = (j < length) & (i < size)
        x = widen(tl.load(source + at + i, mask=there, other=0), PRECISE)
        if TEST == "over":
            passes = x > tl.full((), LOW, PRECISE)
        elif TEST == "not_under":
            passes = (x <= tl.full((), LOW, PRECISE)) == 0
        elif TEST == "between":
            passes = (x > tl.full((), LOW, PRECISE)) & (x < tl.full((), HIGH, PRECISE))
        elif TEST == "within":
            passes = (x >= tl.full((), LOW, PRECISE)) & (x <= tl.full((), HIGH, PRECISE))
        else:
            passes = x != 0
        packed |= (passes & there).to(tl.int32) << k
    tl.store(bits + at // 8 + j, packed.to(tl.uint8), mask=j < length)


@triton.jit
def place_of(count, BLOCK: tl.constexpr):
    """First entry, bytes and entries of a program's block of a mask."""
    at = tl.program_id(0).to(tl.int64) * BLOCK
    size = tl.minimum(count - at, BLOCK).to(tl.int32)
    return at, (size + 7) // 8, size
