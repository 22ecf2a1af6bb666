"""Stochastic rounding of numbers of a known range, such as derivatives of activations, to levels of one spacing.

Flat entries are cut into blocks of 256, of which the last may be shorter. The level ``k`` stands for ``(k - o) h``,
with ``o`` the place of 0. An entry ``x`` becomes ``⌊x / h + o + u⌋``, ``u`` uniform in ``(0, 1)``: its mean is ``x``.

A block with entries that are not finite is *spoilt*: its last level stands for these, and the others are stretched
over the same range. The codes of all blocks are followed by one bit per block that says so (:mod:`.mask_bits`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .derivatives import derivative
from .levels import scale_dtype
from .mask_bits import bits_of, mask_bytes, mask_of, pieces
from .noise import BLOCK, uniform
from .operator import fused
from .packing import pack, packed_size, to_bytes, unpack


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


def spoilt_blocks(held: Tensor, count: int, bits: int) -> Tensor:
    """Which blocks are spoilt."""
    return mask_of(held[packed_size(count, bits) :], -(-count // BLOCK))


def codes_of(part: slice, bits: int) -> slice:
    """Which bytes are the codes of some whole blocks."""
    return slice(part.start // 8 * bits, packed_size(part.stop, bits))


@fused(lambda values, function, parameters, seed, first, bits, *_: room_for(values, bits))
def to_grid(
    values: Tensor,
    function: str,
    parameters: Sequence[float],
    seed: int,
    first: int,
    bits: int,
    inverse: float,
    zero: float,
) -> Tensor:
    """Encode flat entries, or the derivatives ``φ'`` at them in single precision, as codes and marks.

    Args:
        values: ``[n]``, of any floating dtype.
        function: ``φ``, one of :data:`.derivatives.FUNCTIONS`; ``""`` for the entries themselves.
        parameters: Its three numbers.
        seed: Of the noise.
        first: Number of the first block in the noise.
        bits: Bits per entry, 1 to 8.
        inverse: One over the distance of levels, ``1 / h``.
        zero: Place ``o`` of 0 among them.

    Returns:
        ``uint8``: codes, block after block, then a bit per block.

    Example:
        >>> to_grid(torch.tensor([0.0, 1.0, 2.0, 3.0]), "", [1, 0, 0], 0, 0, 2, 1.0, 0.0)
        tensor([228,   0,   0], dtype=torch.uint8)
        >>> to_grid(torch.tensor([-9.0, 9.0]), "gelu", [1, 0, 0], 0, 0, 4, 11.0, 2.0)
        tensor([ 2, 13,  0,  0,  0], dtype=torch.uint8)
    """
    held, marks = room_for(values, bits), []
    for part in _pieces(len(values), values.device):
        x = values[part].float()
        x = derivative(x, function, parameters) if function else x
        numbers = torch.arange(part.start // BLOCK, -(-part.stop // BLOCK), device=x.device) + first
        held[codes_of(part, bits)], spoilt = _to_levels(x, seed, numbers, bits, inverse, zero)
        marks.append(spoilt)
    if marks:
        held[packed_size(len(values), bits) :] = bits_of(torch.cat(marks))
    return held


def room_for(values: Tensor, bits: int) -> Tensor:
    """An empty tensor for the codes and marks of flat entries."""
    return values.new_empty(grid_bytes(len(values), bits), dtype=torch.uint8)


@fused(lambda values, *_: torch.empty_like(values))
def times_grid(values: Tensor, held: Tensor, bits: int, step: float, zero: float) -> Tensor:
    """Multiply values by what :func:`to_grid` encoded: ``x (k - o) h``, in single precision or their own.

    Args:
        values: ``[n]``, of any floating dtype.
        held: Codes and marks that :func:`to_grid` returned.
        bits: Bits per entry.
        step: Distance ``h`` of levels.
        zero: Place ``o`` of 0 among them.

    Example:
        >>> times_grid(torch.ones(4), torch.tensor([228, 0, 0], dtype=torch.uint8), 2, 1.0, 0.0)
        tensor([0., 1., 2., 3.])
    """
    count, precise = len(values), scale_dtype(values.dtype)
    result, spoilt = torch.empty_like(values), spoilt_blocks(held, count, bits)
    for part in _pieces(count, values.device):
        marks = spoilt[part.start // BLOCK : -(-part.stop // BLOCK)]
        factors = _from_levels(held[codes_of(part, bits)], marks, part.stop - part.start, bits, step, zero)
        result[part] = values[part].to(precise) * factors
    return result


def _pieces(count: int, device: torch.device) -> list[slice]:
    """Whole blocks that fit a processor's cache, the shorter last one apart."""
    whole = count // BLOCK * BLOCK
    return pieces(whole, device) + ([slice(whole, count)] if whole < count else [])


def _to_levels(
    values: Tensor, seed: int, numbers: Tensor, bits: int, inverse: float, zero: float
) -> tuple[Tensor, Tensor]:
    """Packed codes of some blocks that have these numbers, and which of them are spoilt."""
    top, size = 2**bits - 1, min(BLOCK, len(values))
    x = values.view(-1, size)
    wrong = x.isfinite().logical_not_()
    spoilt = wrong.any(1, keepdim=True)
    place = x.mul(inverse).add_(zero)
    place = torch.where(spoilt, place.masked_fill(wrong, 0) * stretched(bits)[0], place)
    levels = place.add_(uniform(seed, numbers, size)).clamp_(min=0)
    levels = torch.minimum(levels, torch.where(spoilt, max(0, top - 1), top).float()).masked_fill_(wrong, top)
    return pack(to_bytes(levels), bits).view(-1), spoilt.view(-1)


def _from_levels(codes: Tensor, spoilt: Tensor, count: int, bits: int, step: float, zero: float) -> Tensor:
    """The entries of some blocks, in single precision."""
    top, size = 2**bits - 1, min(BLOCK, count)
    levels, marks = unpack(codes.view(-1, packed_size(size, bits)), bits, size), spoilt.view(-1, 1)
    values = levels.float().mul_(torch.where(marks, stretched(bits)[1], 1.0)).sub_(zero).mul_(step)
    return values.masked_fill_(marks.logical_and(levels == top) if top > 1 else marks, torch.nan).view(-1)
