"""A ``bool`` tensor from one bit per entry, by Triton: see :mod:`.unmask`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic_triton import launch
from .inside_triton import place_of
from .mask_bits import BLOCK


def unmask(bits: Tensor, count: int) -> Tensor:
    """The same bits as the reference's."""
    mask = torch.empty(count, dtype=torch.bool, device=bits.device)
    launch(
        _unmask, triton.cdiv(count, BLOCK), bits, bits.contiguous(), mask.view(torch.uint8), count, BLOCK=BLOCK
    )  # fmt: skip
    return mask


@triton.jit
def _unmask(bits, mask, count, BLOCK: tl.constexpr):
    at, length, size = place_of(count, BLOCK)
    j = tl.arange(0, BLOCK // 8)
    packed = tl.load(bits + at // 8 + j, mask=j < length, other=0)
    for k in range(0, 8):
        i = k * length + j
        tl.store(mask + at + i, (packed >> k) & 1, mask=(j < length) & (i < size))
