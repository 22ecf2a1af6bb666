"""Backward of batch, group and instance normalisation by Triton: see :mod:`.channel_norm`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import divided, launch, rounded, widen
from .channel_norm import terms
from .decode_triton import entries_at
from .encode_triton import channel_of, example_of
from .noise import BLOCK, signed, start

TILE = 512
"""Entries that a program handles at once [entries]."""


def channel_norm_backward(
    codes, scales, seed, bits, grad, rstd, weight, groups, over_batch, corrected, needs_input
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the reference's, up to the order of the sums."""
    examples, before, channels, after = grad.shape
    grad, count = grad.contiguous(), grad.numel()
    held = codes.contiguous(), scales.contiguous(), signed(start(seed))
    same = {"BITS": bits, "BLOCK": BLOCK}
    sums = torch.zeros(2, examples, channels, dtype=scales.dtype, device=grad.device)
    high, wide = sizes(before * after, channels, after == 1)
    programs = examples * triton.cdiv(channels, wide) if count else 0
    launch(
        sums_kernel, programs, *held, grad, sums, before, channels, after, count, examples * channels, WIDE=wide,
        HIGH=high, PRECISE=scales.dtype, **same,
    )  # fmt: skip
    together = examples * before * after if over_batch else channels // groups * before * after
    weight_grad, bias_grad, coefficients = terms(sums, rstd, weight, groups, over_batch, together)
    if not needs_input:
        return grad.new_empty(0), weight_grad, bias_grad
    result = torch.empty_like(grad)
    scale, slope, shift, excess = (each.contiguous() for each in coefficients)
    launch(
        _apply, triton.cdiv(count, TILE), *held, grad, result, scale, slope, shift, excess, channels,
        before * channels * after, after, count, EACH=len(scale) > 1, CORRECTED=corrected, TILE=TILE,
        PRECISE=scales.dtype, **same,
    )  # fmt: skip
    return result, weight_grad, bias_grad


def sizes(positions: int, channels: int, last: bool) -> tuple[int, int]:
    """How many positions of how many channels a program sums at once: neighbours in memory, as many as fill it.

    Example:
        >>> sizes(49, 512, last=False), sizes(1024, 64, last=False), sizes(1024, 48, last=True)
        ((64, 8), (512, 1), (8, 64))
    """
    wide = min(64, triton.next_power_of_2(max(1, channels))) if last else 1
    high = min(TILE // wide, triton.next_power_of_2(max(1, positions)))
    return high, min(TILE // high, triton.next_power_of_2(max(1, channels)))


@triton.jit(do_not_specialize=("start",))
def sums_kernel(
    codes, scales, start: tl.int64, grad, sums, before, channels, after, count, apart, WIDE: tl.constexpr,
    HIGH: tl.constexpr, PRECISE: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the positions of some channels of an example, of ``v`` and of ``v x̂``."""
    some = (channels + WIDE - 1) // WIDE
    example = (tl.program_id(0) // some).to(tl.int64)
    channel = tl.program_id(0) % some * WIDE + tl.arange(0, WIDE)[None, :]
    plain, products = tl.zeros((HIGH, WIDE), PRECISE), tl.zeros((HIGH, WIDE), PRECISE)
    for begin in range(0, before * after, HIGH):
        position = begin + tl.arange(0, HIGH)[:, None]
        inside = (position < before * after) & (channel < channels)
        plane = (example * before + position // after) * channels + channel
        at = plane * after + position % after
        inside = inside & (at < count)
        v = widen(tl.load(grad + at, mask=inside, other=0), PRECISE)
        x = entries_at(codes, scales, start, at, count, inside, BITS, BLOCK)
        plain += v
        products += tl.where(inside, v * x, 0)
    out, there = sums + example * channels + channel, channel < channels
    tl.store(out, tl.sum(plain, 0, keep_dims=True), mask=there)
    tl.store(out + apart, tl.sum(products, 0, keep_dims=True), mask=there)


@triton.jit(do_not_specialize=("start",))
def _apply(
    codes, scales, start: tl.int64, grad, result, scale, slope, shift, excess, channels, example, behind, count,
    EACH: tl.constexpr, CORRECTED: tl.constexpr, TILE: tl.constexpr, PRECISE: tl.constexpr, BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``x̄ = (a + e h²/12) v + (b x̂ + c)``."""
    first = tl.program_id(0).to(tl.int64) * TILE
    i = tl.arange(0, TILE)
    inside = i < count - first
    which = channel_of(first, i, channels, behind)
    if EACH:
        which += example_of(first, i, example) * channels
    v = widen(tl.load(grad + first + i, mask=inside, other=0), PRECISE)
    x = entries_at(codes, scales, start, first + i, count, inside, BITS, BLOCK)
    factor = tl.load(scale + which, mask=inside, other=0)
    x = x * tl.load(slope + which, mask=inside, other=0) + tl.load(shift + which, mask=inside, other=0)
    if CORRECTED:
        step = tl.load(scales + (first + i) // BLOCK * 2 + 1, mask=inside, other=0)
        twelfth = divided(step * step, tl.zeros_like(step) + 12.0)
        factor = twelfth * tl.load(excess + which, mask=inside, other=0) + factor
    tl.store(result + first + i, rounded(factor * v + x, result.dtype.element_ty), mask=inside)
