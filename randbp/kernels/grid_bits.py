"""Numbers of a known range on equally spaced levels in few bits: what encoding and decoding agree on.

Flat entries are cut into blocks of 256, of which the last may be shorter. The level ``k`` stands for ``(k - o) h``,
with ``o`` the place of 0. An entry ``x`` becomes ``⌊x / h + o + u⌋``, ``u`` uniform in ``(0, 1)``: its mean is ``x``.

A block with entries that are not finite is *spoilt*: its last level stands for these, and the others are stretched
over the same range. The codes of all blocks are followed by one bit per block that says so (:mod:`.mask_bits`).
"""

import torch
from torch import Tensor

from .mask_bits import bits_of, mask_bytes, mask_of
from .noise import BLOCK, uniform
from .packing import pack, packed_size, to_bytes, unpack

PIECE = 2**17
"""Entries that fit a processor's cache, a multiple of a block [entries]."""


def grid_bytes(count: int, bits: int) -> int:
    """Bytes of so many entries.

    Example:
        >>> grid_bytes(1000, 4)
        501
    """
    return packed_size(count, bits) + mask_bytes(-(-count // BLOCK))


def stretched(bits: int) -> tuple[float, float]:
    """Factors of the levels of spoilt blocks, when they are made and when they are read."""
    top = 2**bits - 1
    return (top - 1) / top, top / max(1, top - 1)


def pieces(count: int, device: torch.device) -> list[slice]:
    """Whole blocks that fit a processor's cache, the shorter last one apart; few and large ones elsewhere."""
    size, whole = PIECE if device.type == "cpu" else 2**26, count // BLOCK * BLOCK
    parts = [slice(first, min(first + size, whole)) for first in range(0, whole, size)]
    return parts if whole == count else [*parts, slice(whole, count)]


def to_levels(
    values: Tensor, part: slice, seed: int, first: int, bits: int, inverse: float, zero: float
) -> tuple[Tensor, Tensor]:
    """Packed codes of a piece of the entries, and which of its blocks are spoilt.

    Args:
        values: The piece, in single precision.
        part: Which entries these are.
        seed: Of the noise.
        first: Number of the first block of all entries for the noise.
        bits: Bits per entry.
        inverse: ``1 / h``.
        zero: Place ``o`` of 0.
    """
    top, size = 2**bits - 1, min(BLOCK, len(values))
    x = values.view(-1, size)
    wrong = x.isfinite().logical_not_()
    spoilt = wrong.any(1, keepdim=True)
    numbers = torch.arange(part.start // BLOCK, -(-part.stop // BLOCK), device=x.device) + first
    place = x.mul(inverse).add_(zero)
    place = torch.where(spoilt, place.masked_fill(wrong, 0) * stretched(bits)[0], place)
    levels = place.add_(uniform(seed, numbers, size)).clamp_(min=0)
    levels = torch.minimum(levels, torch.where(spoilt, max(0, top - 1), top).float()).masked_fill_(wrong, top)
    return pack(to_bytes(levels), bits).view(-1), spoilt.view(-1)


def from_levels(codes: Tensor, spoilt: Tensor, count: int, bits: int, step: float, zero: float) -> Tensor:
    """The entries of a piece, in single precision."""
    top, size = 2**bits - 1, min(BLOCK, count)
    levels, marks = unpack(codes.view(-1, packed_size(size, bits)), bits, size), spoilt.view(-1, 1)
    values = levels.float().mul_(torch.where(marks, stretched(bits)[1], 1.0)).sub_(zero).mul_(step)
    return values.masked_fill_(marks.logical_and(levels == top) if top > 1 else marks, torch.nan).view(-1)


def encoded(count: int, device: torch.device, bits: int) -> Tensor:
    """Room for the codes and marks of so many entries."""
    return torch.empty(grid_bytes(count, bits), dtype=torch.uint8, device=device)


def marks_of(spoilt: list[Tensor], held: Tensor, count: int, bits: int) -> Tensor:
    """``held``, with the marks of its blocks."""
    if spoilt:
        held[packed_size(count, bits) :] = bits_of(torch.cat(spoilt))
    return held


def spoilt_blocks(held: Tensor, count: int, bits: int) -> Tensor:
    """Which blocks are spoilt."""
    return mask_of(held[packed_size(count, bits) :], -(-count // BLOCK))


def codes_of(part: slice, bits: int) -> slice:
    """Where the codes of a piece lie."""
    return slice(part.start // 8 * bits, packed_size(part.stop, bits))
