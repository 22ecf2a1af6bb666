"""Backward of layer and root-mean-square normalisation by Triton: see :mod:`.row_norm`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import divided, launch, rounded, tile, widen
from .channel_norm_triton import sizes, sums_kernel
from .decode_triton import entries_at
from .noise import BLOCK, signed, start

PARTS = 64
"""Into how many parts rows are cut at most, whose sums are taken together."""


def row_norm_backward(
    codes, scales, seed, bits, grad, rstd, weight, centred, corrected, needs_input
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    rows, columns = grad.shape
    grad, rstd = grad.contiguous(), rstd.contiguous()
    held = codes.contiguous(), scales.contiguous(), signed(start(seed))
    same = {"BITS": bits, "BLOCK": BLOCK, "PRECISE": scales.dtype}
    high, wide = sizes(rows, columns, last=True)
    parts = max(1, min(PARTS, triton.cdiv(rows, high)))
    sums = torch.zeros(2, parts, columns, dtype=scales.dtype, device=grad.device)
    launch(
        sums_kernel, parts * triton.cdiv(columns, wide), *held, grad, sums, triton.cdiv(rows, parts), columns, 1,
        grad.numel(), parts * columns, WIDE=wide, HIGH=high, **same,
    )  # fmt: skip
    bias_grad, weight_grad = sums.sum(1)
    if not needs_input:
        return grad.new_empty(0), weight_grad, bias_grad
    result, (together, wide) = torch.empty_like(grad), tile(columns)
    launch(
        _rows, triton.cdiv(rows, together) if columns else 0, *held, grad, rstd,
        rstd if weight is None else weight.contiguous(), result, rows, columns, grad.numel(),
        WEIGHTED=weight is not None, CENTRED=centred, CORRECTED=corrected, TOGETHER=together, WIDE=wide, **same,
    )  # fmt: skip
    return result, weight_grad, bias_grad


@triton.jit(do_not_specialize=("start",))
def _rows(
    codes, scales, start: tl.int64, grad, rstd, weight, result, rows, columns, count, WEIGHTED: tl.constexpr,
    CENTRED: tl.constexpr, CORRECTED: tl.constexpr, TOGETHER: tl.constexpr, WIDE: tl.constexpr, PRECISE: tl.constexpr,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)[:, None]
    first = row * columns
    plain, products = tl.zeros((TOGETHER, WIDE), PRECISE), tl.zeros((TOGETHER, WIDE), PRECISE)
    for begin in range(0, columns, WIDE):
        column = begin + tl.arange(0, WIDE)[None, :]
        inside = (row < rows) & (column < columns)
        v = _weighted(grad + first + column, weight + column, inside, WEIGHTED, PRECISE)
        x = entries_at(codes, scales, start, first + column, count, inside, BITS, BLOCK)
        plain += v
        products += tl.where(inside, v * x, 0)
    r = tl.load(rstd + row, mask=row < rows, other=0)
    size = tl.zeros_like(r) + columns
    slope = tl.sum(products, 1, keep_dims=True) * divided(r, -size)
    shift = divided(tl.sum(plain, 1, keep_dims=True), size) * r
    for begin in range(0, columns, WIDE):
        column = begin + tl.arange(0, WIDE)[None, :]
        inside = (row < rows) & (column < columns)
        v = _weighted(grad + first + column, weight + column, inside, WEIGHTED, PRECISE)
        x = entries_at(codes, scales, start, first + column, count, inside, BITS, BLOCK) * slope
        if CENTRED:
            x = x - shift
        factor = tl.zeros_like(x) + r
        if CORRECTED:
            step = tl.load(scales + (first + column) // BLOCK * 2 + 1, mask=inside, other=0)
            factor = divided(step * step, tl.zeros_like(step) + 12.0) * divided(r, size) + factor
        tl.store(result + first + column, rounded(x + v * factor, result.dtype.element_ty), mask=inside)


@triton.jit
def _weighted(at, weight, inside, WEIGHTED: tl.constexpr, PRECISE: tl.constexpr):
    """``γ v``."""
    v = widen(tl.load(at, mask=inside, other=0), PRECISE)
    return v * tl.load(weight, mask=inside, other=0) if WEIGHTED else v
