"""Weight VJPs of depthwise convolutions by Triton: see :mod:`.depthwise`.

No input is rebuilt: with ``X = m + w x`` where an entry was kept and ``m`` elsewhere, a kernel entry's sum is that of
the kept entries times the output gradients that they meet, and ``m`` times the sum of those that meet any input.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basics_triton import launch, widen
from .levels import scale_dtype

ENTRIES, COLUMNS = 16, 32
"""Kernel entries of which a program makes the sums, at most, and terms that it adds at once to each."""

PROGRAMS = 2**11
"""Programs that keep a GPU busy, about: where channels are fewer, each program has some of the examples."""


def depthwise_weight_vjp(
    kept, numbers, middle, output_grad, kernel_size, input_size, stride, padding, dilation
) -> Tensor:
    """The same as the reference's, up to the order of the sums."""
    (batch, channels, positions), copies = kept.shape, output_grad.shape[1]
    dtype, every = scale_dtype(output_grad.dtype), kernel_size[0] * kernel_size[1]
    entries = min(ENTRIES, triton.next_power_of_2(every))
    tiles = triton.cdiv(every, entries)
    parts = max(1, min(batch, PROGRAMS // (copies * tiles)))
    sums = torch.empty(parts, copies, *kernel_size, dtype=dtype, device=kept.device)
    launch(
        _depthwise, copies * tiles * parts, kept.contiguous(), numbers.contiguous(), middle.contiguous(),
        output_grad.contiguous(), sums, batch, channels, copies, positions, positions if len(numbers) > 1 else 0,
        *output_grad.shape[2:], *input_size, every, kernel_size[1], *stride, *padding, *dilation, tiles, parts,
        ENTRIES=entries, COLUMNS=COLUMNS, PRECISE=dtype,
    )  # fmt: skip
    return (sums.squeeze(0) if parts == 1 else sums.sum(0)).to(output_grad.dtype)


@triton.jit
def _depthwise(
    kept, numbers, middle, output_grad, sums, batch, channels, copies, positions, of_example,
    out_height, out_width, height, width, every, kernel_width, stride_1, stride_2, padding_1, padding_2, dilation_1,
    dilation_2, tiles, parts, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    part, number = program // (copies * tiles), program % (copies * tiles)
    d, k = number // tiles, number % tiles * ENTRIES + tl.arange(0, ENTRIES)[:, None]
    above = (k // kernel_width) * dilation_1 - padding_1
    before = (k % kernel_width) * dilation_2 - padding_2
    total = tl.zeros((ENTRIES, COLUMNS), PRECISE)
    first = batch * part.to(tl.int64) // parts
    for further in range(0, batch * (part + 1) // parts - first):
        n = first + further
        plane = n * channels + d // (copies // channels)
        grad = output_grad + (n * copies + d) * out_height * out_width
        met = tl.zeros((ENTRIES, COLUMNS), PRECISE)
        for begin in range(0, out_height * out_width, COLUMNS):
            o = begin + tl.arange(0, COLUMNS)[None, :]
            v = widen(tl.load(grad + o, mask=o < out_height * out_width, other=0), PRECISE)
            i, j = o // out_width * stride_1 + above, o % out_width * stride_2 + before
            met += tl.where((i >= 0) & (i < height) & (j >= 0) & (j < width), v, 0)
        total += met * widen(tl.load(middle + plane), PRECISE)
        for begin in range(0, positions, COLUMNS):
            s = begin + tl.arange(0, COLUMNS)[None, :]
            where = tl.load(numbers + n * of_example + s, mask=s < positions, other=0).to(tl.int32)
            x = widen(tl.load(kept + plane * positions + s, mask=s < positions, other=0), PRECISE)
            i, j = where // width - above, where % width - before
            o_1, o_2 = i // stride_1, j // stride_2
            there = (s < positions) & (i >= 0) & (i == o_1 * stride_1) & (o_1 < out_height)
            there = there & (j >= 0) & (j == o_2 * stride_2) & (o_2 < out_width) & (k < every)
            total += x * widen(tl.load(grad + o_1 * out_width + o_2, mask=there, other=0), PRECISE)
    at = sums + (part.to(tl.int64) * copies + d) * every + k
    tl.store(at, tl.sum(total, 1, keep_dims=True), mask=k < every)
