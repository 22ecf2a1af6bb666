"""Stochastic rounding of single precision to a type of 16 bits."""

import torch
from torch import Tensor

from .levels import Rows
from .noise import BLOCK, halves, keys
from .operator import fused


@fused(lambda values, seed, first, dtype: values.new_empty(values.shape, dtype=dtype))
def narrow(values: Tensor, seed: int, first: int, dtype: torch.dtype) -> Tensor:
    """Round single precision to bfloat16 or float16: up with the probability of what is cut off, else down.

    Let ``d`` be the number of bits of an entry's significand that the narrow type has no room for. Sixteen random bits
    ``j``, shifted so that they end where the entry's last kept bit begins, are added to the entry's magnitude, and the
    last ``d`` bits are cut off: the expectation is the entry, up to ``2^-16`` of the distance ``u`` between its
    neighbours. (For bfloat16 ``d`` is 16 and ``j`` all that is needed; for float16 ``d`` is 13, and up to 24 below the
    smallest normal number, ``2^-14``.) The variance is ``u² f (1 - f)`` with ``f`` the part of ``u`` that is cut off.

    Entries that the narrow type can represent, infinite ones and NaN do not change. An entry above the narrow type's
    largest number becomes that number or infinite.

    Args:
        values: ``float32``, contiguous.
        seed: Of the noise.
        first: Number of the first block of 256 entries for the noise (:mod:`.noise`).
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        The rounded values, in that type.

    Example:
        >>> x = torch.full((10_000,), 1 + 2**-9)  # a quarter of the way from 1 to the next number
        >>> float((narrow(x, 0, 0, torch.bfloat16) > 1).float().mean())
        0.2546
    """
    flat, result = values.reshape(-1), torch.empty(values.shape, dtype=dtype, device=values.device)
    for _, blocks, entries in Rows(flat.numel(), BLOCK, 16).pieces(1, flat.device, 2**17):
        part = slice(blocks.start * BLOCK, blocks.start * BLOCK + (blocks.stop - blocks.start) * entries)
        noise = keys(seed, torch.arange(blocks.start, blocks.stop, device=flat.device) + first)
        bits = flat[part].view(torch.int32).unflatten(0, (-1, entries))
        cut = (_bfloat16 if dtype == torch.bfloat16 else _float16)(bits, halves(noise, entries, torch.int32))
        result.view(-1)[part] = cut.to(torch.int16).view(dtype).flatten()
    return result


def _bfloat16(bits: Tensor, noise: Tensor) -> Tensor:
    special = (bits & 0x7F800000) == 0x7F800000
    quiet = torch.where((bits & 0x7FFFFF) != 0, 0x40, 0)  # a NaN whose payload lies in what is cut off
    return torch.where(special, bits >> 16 | quiet, (bits + noise) >> 16)


def _float16(bits: Tensor, noise: Tensor) -> Tensor:
    size = bits & 0x7FFFFFFF
    normal = ((size + (noise >> 3)) >> 13) - (112 << 10)
    exponent = (size >> 23).clamp(min=1)
    significand = (size & 0x7FFFFF) | torch.where(size >= 0x800000, 0x800000, 0)
    dropped = 126 - exponent
    significand = significand >> (dropped - 24).clamp(0, 31)
    dropped = dropped.clamp(13, 24)
    small = (significand + (noise << 8 >> (24 - dropped))) >> dropped
    cut = torch.where(size >= 0x38800000, normal.clamp(max=0x7C00), small)
    special = torch.where(size > 0x7F800000, 0x7E00, 0x7C00)
    return torch.where(size >= 0x7F800000, special, cut) | (bits >> 16 & 0x8000)
