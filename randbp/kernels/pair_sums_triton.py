"""Sums of products of pairs of positions by Triton: see :mod:`.pair_sums`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import launch, widen
from .levels import scale_dtype

CHANNELS = 64
"""Of which a program makes the sums of one entry of the kernel, at most."""

TERMS = 8
"""Pairs whose products a program adds at once to each sum."""

PROGRAMS = 2**11
"""Programs that keep a GPU busy, about: where channels are fewer, each program has some of the examples."""


def pair_sums(left: Tensor, right: Tensor, pairs: Tensor, starts: Tensor) -> Tensor:
    """The same as the reference's, up to the order of the sums."""
    (batch, positions, channels), entries = left.shape, len(starts) - 1
    wide = max(1, min(CHANNELS, triton.next_power_of_2(channels)))
    blocks = triton.cdiv(channels, wide)
    parts = max(1, min(batch, PROGRAMS // max(1, blocks * entries)))
    precise = scale_dtype(left.dtype)
    sums = torch.empty(parts, channels, entries, dtype=precise, device=left.device)
    launch(
        _pair_sums, blocks * entries * parts, left.contiguous(), right.contiguous(), pairs.contiguous(),
        starts.contiguous(), sums, batch, positions, right.shape[1], channels, entries, blocks, parts,
        CHANNELS=wide, TERMS=TERMS, PRECISE=precise,
    )  # fmt: skip
    return (sums.squeeze(0) if parts == 1 else sums.sum(0)).to(left.dtype)


@triton.jit
def _pair_sums(
    left, right, pairs, starts, sums, batch, inputs, outputs, channels, entries, blocks, parts,
    CHANNELS: tl.constexpr, TERMS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    part, number = program // (blocks * entries), program % (blocks * entries)
    k, c = number // blocks, number % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first, last = tl.load(starts + k), tl.load(starts + k + 1)
    total = tl.zeros((TERMS, CHANNELS), PRECISE)
    example = batch * part.to(tl.int64) // parts
    for further in range(0, batch * (part + 1) // parts - example):
        n = example + further
        for begin in range(first, last, TERMS):
            p = begin + tl.arange(0, TERMS)[:, None]
            i = tl.load(pairs + 2 * p, mask=p < last, other=0)
            o = tl.load(pairs + 2 * p + 1, mask=p < last, other=0)
            there = (p < last) & (c < channels)
            x = widen(tl.load(left + (n * inputs + i) * channels + c, mask=there, other=0), PRECISE)
            total += x * widen(tl.load(right + (n * outputs + o) * channels + c, mask=there, other=0), PRECISE)
    at = sums + (part.to(tl.int64) * channels + c) * entries + k
    tl.store(at, tl.sum(total, 0, keep_dims=True), mask=c < channels)
