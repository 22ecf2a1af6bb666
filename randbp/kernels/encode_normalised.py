"""Encoding of numbers on the way of their normalisation."""

import torch
from torch import Tensor

from .channels import pieces
from .encode import encode
from .levels import Rows, scale_dtype
from .noise import BLOCK
from .operator import fused


def _fake(values: Tensor, mean: Tensor, rstd: Tensor, seed: int, bits: int) -> tuple[Tensor, Tensor]:
    rows = Rows(values.numel(), BLOCK, bits)
    scales = values.new_empty(1, rows.blocks, 2, dtype=scale_dtype(values.dtype))
    return values.new_empty(1, rows.nbytes, dtype=torch.uint8), scales


@fused(_fake)
def encode_normalised(values: Tensor, mean: Tensor, rstd: Tensor, seed: int, bits: int) -> tuple[Tensor, Tensor]:
    r"""Codes and scales of ``x̂ = (x - μ) r``, dithered: :func:`.encode` without a pass for ``x̂``.

    Args:
        values: ``x``, ``[N, P, C, S]`` without gaps: channels ``C`` among positions before and behind them.
        mean: ``μ``, ``[N or 1, C]`` in the precision of the scales.
        rstd: ``r``, likewise.
        seed: Of the noise.
        bits: Bits per entry.

    Returns:
        Codes ``[1, bytes]`` and scales ``[1, blocks, 2]``, of all entries in one row of blocks of 256.

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
