"""The inverse of stochastic rounding: entries from integers of a few bits."""

import torch
from torch import Tensor

from .levels import Rows, numbers
from .noise import halves, keys
from .operator import fused
from .packing import unpack


@fused(
    lambda codes, scales, seed, first, bits, block, entries, dithered, dtype: codes.new_empty(
        len(codes), entries, dtype=dtype
    )
)
def decode(
    codes: Tensor,
    scales: Tensor,
    seed: int,
    first: int,
    bits: int,
    block: int,
    entries: int,
    dithered: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Decode codes and scales of :func:`.encode` as rows ``[R, entries]``.

    The code ``k`` of a block with offset ``a`` and step ``h`` is decoded as ``a + h k``, or, if dithered, as
    ``a + h (k + 1/2 - u)`` with the noise ``u`` that was added. Entries that were not finite are decoded as NaN.

    Args:
        codes: ``uint8 [R, bytes]``.
        scales: ``[R, blocks, 2]``.
        seed: As it was encoded with.
        first: Number of the first block of these rows in the noise.
        bits: Bits per entry.
        block: Entries of a block, as in encoding.
        entries: Entries of a row.
        dithered: Whether the noise is subtracted.
        dtype: Of the result, which is rounded from the precision of the scales.

    Example:
        >>> scales = torch.tensor([[[0.0, 1.0]]])
        >>> decode(torch.tensor([[228, 0]], dtype=torch.uint8), scales, 0, 0, 2, 4, 4, False, torch.float32)
        tensor([[0., 1., 2., 3.]])
    """
    rows, top, precise = Rows(entries, block, bits), 2**bits - 1, scales.dtype
    result = torch.empty(len(codes), entries, dtype=dtype, device=codes.device)
    noise = keys(seed, numbers(rows, len(codes), first, codes.device)) if dithered else None
    for part, blocks, size in rows.pieces(len(codes), codes.device):
        count = blocks.stop - blocks.start
        packed = codes[part, rows.first_byte(blocks.start) :][:, : count * -(-size // 8) * bits]
        integers = unpack(packed.unflatten(1, (count, -1)), bits, size)
        least, step = scales[part, blocks].split(1, 2)
        target = result[part, blocks.start * block :][:, : count * size].unflatten(1, (count, size))
        values = target.copy_(integers) if dtype == precise else integers.to(precise)
        if noise is not None:  # 2^-16 (j + 1/2) - 1/2 is exact: it may be multiplied and subtracted at once
            values.sub_(halves(noise[part, blocks], size, precise).sub_(2**15 - 0.5), alpha=2**-16)
        values.mul_(step.abs()).add_(least)
        spoilt = step.signbit()
        if codes.device.type != "cpu" or bool(spoilt.any()):
            values.masked_fill_(spoilt.logical_and(integers == top), torch.nan)
        if values is not target:
            target.copy_(values)
    return result
