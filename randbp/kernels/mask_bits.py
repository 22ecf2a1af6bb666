"""Yes or no per entry in one bit: how the bits of a mask lie in memory.

A flat mask is cut into blocks of 2048 entries, of which the last may be shorter. A block of ``n`` entries takes
``L = ⌈n / 8⌉`` bytes; bit ``k`` of its byte ``j`` belongs to entry ``j + k L``: long runs of memory move at once.
"""

import torch
from torch import Tensor

from .packing import pack, unpack

BLOCK = 2048
"""Entries of a block [entries]."""

PIECE = 2**17
"""Entries that fit a processor's cache, a multiple of a block [entries]."""


def mask_bytes(count: int) -> int:
    """Bytes of the bits of so many entries.

    Example:
        >>> mask_bytes(2049), mask_bytes(0)
        (257, 0)
    """
    return -(-count // 8)


def bits_of(mask: Tensor) -> Tensor:
    """The bits of a flat ``bool`` tensor, ``uint8 [⌈n / 8⌉]``.

    Example:
        >>> bits = bits_of(torch.tensor([True, False, True]))
        >>> bits, mask_of(bits, 3)
        (tensor([5], dtype=torch.uint8), tensor([ True, False,  True]))
    """
    codes, whole = mask.view(torch.uint8), len(mask) // BLOCK * BLOCK
    blocks = pack(codes[:whole].view(-1, BLOCK), 1).view(-1)
    return blocks if whole == len(mask) else torch.cat([blocks, pack(codes[whole:], 1)])


def mask_of(bits: Tensor, count: int) -> Tensor:
    """The inverse: a flat ``bool`` tensor of ``count`` entries."""
    whole = count // BLOCK * BLOCK
    blocks = unpack(bits[: whole // 8].view(-1, BLOCK // 8), 1, BLOCK).reshape(-1)
    codes = blocks if whole == count else torch.cat([blocks, unpack(bits[whole // 8 :], 1, count - whole)])
    return codes.view(torch.bool)


def pieces(count: int, device: torch.device) -> list[slice]:
    """Whole blocks that fit a processor's cache; all at once elsewhere."""
    size = PIECE if device.type == "cpu" else max(1, count)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def bytes_of(part: slice) -> slice:
    """Where the bits of some whole blocks lie."""
    return slice(part.start // 8, mask_bytes(part.stop))
