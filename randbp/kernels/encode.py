"""Stochastic rounding of blocks of entries to integers of a few bits, packed, and two scales per block."""

import torch
from torch import Tensor

from .levels import Rows, factors, numbers, scale_dtype
from .noise import BLOCK, halves, keys
from .operator import fused
from .packing import pack, to_bytes
from .planes import pieces


@fused(lambda values, seed, first, bits, block, dithered: room_for(values, bits, block))
def encode(values: Tensor, seed: int, first: int, bits: int, block: int, dithered: bool) -> tuple[Tensor, Tensor]:
    r"""Round rows of numbers stochastically to integers of a few bits; return packed codes and scales.

    A block gets an offset ``a``, its least entry, and a step ``h = range / (2^bits - 1)`` (``1 + 2^-15`` times that if
    dithered). An entry ``x`` becomes the integer ``⌊(x - a) (1 / h) + u⌋``, ``u`` uniform in ``(0, 1)``.

    If a block has entries that are infinite, NaN or above half of the largest number, its levels span the other
    entries, its last level stands for these, and its step is negative (NaN with one bit). A step whose reciprocal is
    infinite is set to 0.

    Args:
        values: ``[R, M]`` of any floating dtype and strides.
        seed: Of the noise.
        first: Number of the first block in the noise (:mod:`.noise`), so that some rows can be encoded alone.
        bits: Bits per entry, 1 to 8.
        block: Entries that share two scales, within a row; the last block of a row may be shorter.
        dithered: Whether :func:`.decode` will subtract the noise again.

    Returns:
        Codes ``uint8 [R, bytes]``, block after block (:func:`.packing.pack`), and scales ``[R, blocks, 2]``, the
        offset and the step of each block.

    Example:
        >>> codes, scales = encode(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 0, 0, 2, 4, False)
        >>> codes, scales
        (tensor([[228,   0]], dtype=torch.uint8), tensor([[[0., 1.]]]))
    """
    rows = Rows(values.shape[1], block, bits)
    dtype, top, (whole, spoilt) = scale_dtype(values.dtype), 2**bits - 1, factors(bits, dithered)
    codes, scales = room_for(values, bits, block)
    noise = keys(seed, numbers(rows, len(values), first, values.device))
    for part, blocks, entries in rows.pieces(len(values), values.device):
        columns = slice(blocks.start * block, blocks.start * block + (blocks.stop - blocks.start) * entries)
        x = values[part, columns].to(dtype).unflatten(1, (-1, entries))
        least, step, inverse, wrong = _levels(x, whole, spoilt)
        levels = (x - least).mul_(inverse)
        # 2^-16 (j + 1/2) is exact: it may be multiplied and added at once.
        levels.add_(halves(noise[part, blocks], entries, dtype).add_(0.5), alpha=2**-16)
        if wrong is not None:
            levels.nan_to_num_(0, 0, 0).clamp_(min=0)
            levels = torch.minimum(levels, torch.where(step.signbit(), top - 1, top).to(dtype))
            levels.masked_fill_(wrong, top)
        packed = pack(to_bytes(levels, top), bits).flatten(1)
        byte = rows.first_byte(blocks.start)
        codes[part, byte : byte + packed.shape[1]] = packed
        torch.cat([least, step], 2, out=scales[part, blocks])
    return codes, scales


def room_for(rows: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Empty tensors for the codes and scales of rows of numbers."""
    count, layout = len(rows), Rows(rows.shape[1], block, bits)
    codes = torch.empty(count, layout.nbytes, dtype=torch.uint8, device=rows.device)
    return codes, torch.empty(count, layout.blocks, 2, dtype=scale_dtype(rows.dtype), device=rows.device)


def _levels(x: Tensor, whole: float, spoilt: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Offset, step and the step's reciprocal of each block, and which entries no level stands for, ``None`` if none."""
    least, largest = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    limit, wrong = torch.finfo(x.dtype).max / 2, None
    step = (largest - least).mul_(whole)
    # Asking an accelerator would make everything wait for it.
    if x.device.type != "cpu" or not (float(least.amin()) >= -limit and float(largest.amax()) <= limit):
        wrong = (x.abs() <= limit).logical_not_()
        least = x.masked_fill(wrong, torch.inf).amin(-1, keepdim=True)
        span = x.masked_fill(wrong, -torch.inf).amax(-1, keepdim=True).sub_(least)
        nothing = span == -torch.inf
        least, span = least.masked_fill(nothing, 0), span.masked_fill(nothing, 0)
        narrow = torch.full_like(span, torch.nan) if spoilt is None else (span * spoilt).neg_()
        step = torch.where(wrong.any(-1, keepdim=True), narrow, span * whole)
    inverse = step.abs().reciprocal_()
    too_small = inverse.isinf()
    zero = 0.0 if wrong is None else torch.zeros_like(step).copysign_(step)
    step = torch.where(too_small, zero, step)
    return least.add_(0.0), step, inverse.masked_fill_(too_small, 0), wrong


@fused(lambda values, mean, rstd, seed, bits: room_for(values.flatten().unsqueeze(0), bits, BLOCK))
def encode_normalised(values: Tensor, mean: Tensor, rstd: Tensor, seed: int, bits: int) -> tuple[Tensor, Tensor]:
    r"""Encode ``x̂ = (x - μ) r`` with dither, as :func:`.encode` does, without a pass over memory for ``x̂``.

    Args:
        values: ``x``, ``[N, P, C, S]`` without gaps: channels ``C`` among positions before and behind them.
        mean: ``μ``, ``[N or 1, C]`` in the precision of the scales.
        rstd: ``r``, likewise.
        seed: Of the noise.
        bits: Bits per entry.

    Returns:
        Codes ``[1, bytes]`` and scales ``[1, blocks, 2]`` of one row of all entries, in blocks of 256.

    Example:
        >>> x, mean, rstd = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[2.0]]), torch.tensor([[1.0]])
        >>> codes, scales = encode_normalised(x, mean, rstd, 0, 8)
        >>> codes.shape, scales[0, 0].round(decimals=4)
        (torch.Size([1, 8]), tensor([-1.0000,  0.0078]))
    """
    examples, dtype = len(values), scale_dtype(values.dtype)
    if not values.numel():
        return encode.reference(values.reshape(1, 0), seed, 0, bits, BLOCK, True)
    mean, rstd = (each.expand(examples, -1)[:, None, :, None] for each in (mean, rstd))
    codes, scales, rest = [], [], values.new_empty(0, dtype=dtype)
    first, left = 0, values.numel()
    for n, p, c in pieces(values.shape, values.device):
        part = values[n, p, c].to(dtype).sub(mean[n, :, c]).mul_(rstd[n, :, c]).flatten()
        rest, left = torch.cat([rest, part]), left - len(part)
        whole = len(rest) // BLOCK * BLOCK if left else len(rest)
        made = encode(rest[:whole].view(1, -1), seed, first, bits, BLOCK, True)
        codes.append(made[0])
        scales.append(made[1])
        rest, first = rest[whole:], first + whole // BLOCK
    return torch.cat(codes, 1), torch.cat(scales, 1)
