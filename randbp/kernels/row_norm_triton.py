"""Backward of layer and root-mean-square normalisation by Triton: see :mod:`.row_norm`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import divided, launch, rounded, tile, widen
from .decode_triton import entries_at
from .noise import BLOCK, signed, start

WIDE, HIGH, PARTS = 64, 8, 64
"""Columns and rows that a program sums at once, and into how many parts rows are cut at most."""


def row_norm_backward(
    codes, scales, seed, bits, grad, rstd, weight, centred, corrected, needs_input
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    rows, columns = grad.shape
    grad, rstd = grad.contiguous(), rstd.contiguous()
    held = codes.contiguous(), scales.contiguous(), signed(start(seed))
    same = {"BITS": bits, "BLOCK": BLOCK, "PRECISE": scales.dtype}
    parts = max(1, min(PARTS, triton.cdiv(rows, HIGH)))
    sums = torch.zeros(2, parts, columns, dtype=scales.dtype, device=grad.device)
    launch(
        _columns, parts * triton.cdiv(columns, WIDE), *held, grad, sums, rows, columns, grad.numel(),
        triton.cdiv(rows, parts), parts * columns, WIDE=WIDE, HIGH=HIGH, **same,
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
def _columns(
    codes, scales, start: tl.int64, grad, sums, rows, columns, count, each, apart, WIDE: tl.constexpr,
    HIGH: tl.constexpr, PRECISE: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over some rows of some columns, of ``v`` and of ``v x̂``."""
    some = (columns + WIDE - 1) // WIDE
    part = tl.program_id(0) // some
    column = tl.program_id(0) % some * WIDE + tl.arange(0, WIDE)[None, :]
    last = tl.minimum((part + 1) * each, rows)
    plain, products = tl.zeros((HIGH, WIDE), PRECISE), tl.zeros((HIGH, WIDE), PRECISE)
    for begin in range(part * each, last, HIGH):
        row = begin + tl.arange(0, HIGH)[:, None]
        inside = (row < last) & (column < columns)
        at = row.to(tl.int64) * columns + column
        v = widen(tl.load(grad + at, mask=inside, other=0), PRECISE)
        x = entries_at(codes, scales, start, at, count, inside, BITS, BLOCK)
        plain += v
        products += tl.where(inside, v * x, 0)
    out = sums + part * columns + column
    tl.store(out, tl.sum(plain, 0, keep_dims=True), mask=column < columns)
    tl.store(out + apart, tl.sum(products, 0, keep_dims=True), mask=column < columns)


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
