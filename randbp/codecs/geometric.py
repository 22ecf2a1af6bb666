"""A codec whose error is small relative to each entry: levels are in geometric progression."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..kernels.noise import BLOCK
from ..kernels.packing import pack, packed_size, to_bytes, unpack
from .flat import Flat, needed
from .stream import Stream

_SPREAD = 2.0
"""Standard deviations of the logarithms below their mean, at which the levels end."""

_FINE, _DEEP = 0.25, 8.0
"""Distance of levels [octaves] up to which they may go down to the least entry, and how far at most [octaves]."""


@dataclass(frozen=True)
class Geometric(Flat):
    r"""Stochastic rounding of flat entries to powers of a ratio, with two scales per block of 256.

    A derivative with poles has a few huge entries among many ordinary ones, and the backward pass may multiply the huge
    ones by nearly nothing. So the error of each entry must be small relative to that entry. The levels of a block are 0
    and ``a r^{-k}``, ``k = 0 … M - 1``, with ``a`` its largest magnitude; an entry ``s`` between two of them takes
    either with the probability that makes ``s`` its mean. The standard deviation is then at most ``(√r - 1/√r) / 2`` of
    the entry. The least level is the least entry, unless levels would then be more than a quarter of an octave apart or
    the least one more than eight octaves down: then it is two standard deviations of the entries' logarithms below
    their mean. Smaller entries are rounded to it or to 0. A block whose entries all have one sign has
    ``M = 2^bits - 2`` levels, another ``2^(bits-1) - 1`` of each sign. One code stands for entries that are not finite;
    they are decoded as NaN.

    Args:
        bits: Bits per entry, 2 to 8.

    Example:
        >>> slopes, noise = 1 / torch.tensor([1.0, 0.0, 1e-6]), Stream(0, torch.device("cpu"))
        >>> Geometric(bits=5).decode(Geometric(bits=5).encode(slopes, noise), 3)
        tensor([1.0000e+00,        nan, 1.0000e+06])
    """

    bits: int
    unit: ClassVar[int] = BLOCK

    @staticmethod
    def _blocks(count: int) -> tuple[int, int]:
        """Return the number of blocks, and the entries of each."""
        block = max(1, min(BLOCK, count))
        return -(-count // block), block

    def nbytes(self, count: int) -> int:
        """Return the bytes of codes and scales."""
        blocks, block = self._blocks(count)
        return packed_size(blocks * block, self.bits) + 8 * blocks

    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """Encode flat values as ``uint8``."""
        at = self._places(values)
        share = (at.size - at.under).div_(at.over - at.under).nan_to_num_(0, 0, 0)
        drawn = needed(noise).next(share.numel()).view(share.shape).add_(0.5)
        code = at.below.add_(drawn < share).minimum(at.levels)
        half = 2 ** (self.bits - 1)
        code.add_(at.negative.logical_and_(at.mixed).logical_and_(code > 0), alpha=half)
        code = torch.where(at.wrong, torch.where(at.mixed, half, 2 * half - 1), code)
        codes = to_bytes(code.view(-1))
        signed = torch.where(at.downwards.logical_and(at.mixed.logical_not()), -at.largest, at.largest)
        scales = torch.cat([signed, torch.where(at.mixed, -at.ratio, at.ratio)], 1)
        return torch.cat([pack(codes, self.bits), scales.view(-1).view(torch.uint8)])

    def variance(self, values: Tensor) -> Tensor:
        """Return ``(s - a) (b - s)`` of a magnitude ``s`` between two levels ``a`` and ``b``.

        Example:
            >>> Geometric(bits=2).variance(torch.tensor([4.0, 3.0, 1.0]))  # levels 0, 1 and 4
            tensor([0., 2., 0.])
        """
        at = self._places(values)
        each = (at.size - at.under).mul_(at.over - at.size).clamp_(min=0).masked_fill_(at.wrong, torch.nan)
        return each.view(-1)[: values.numel()]

    def _places(self, values: Tensor) -> "_Places":
        blocks, block = self._blocks(values.numel())
        values = values.float()
        if missing := blocks * block - values.numel():
            values = torch.cat([values, values[-1:].expand(missing)])
        values = values.reshape(blocks, block)
        size = values.abs()
        wrong = size.isfinite().logical_not_()
        size.masked_fill_(wrong, 0)
        present = size > 0
        negative = (values < 0).logical_and_(present)
        downwards = negative.any(1, keepdim=True)
        mixed = downwards.logical_and(negative.logical_xor(present).any(1, keepdim=True))
        levels = self._levels(mixed)
        largest, ratio, place = _progression(size, present, levels)
        below = place.floor()
        under = torch.where(below == 0, 0, largest * torch.exp2(ratio * (below - levels)))
        over = largest * torch.exp2(ratio * (below - levels + 1))
        return _Places(size, wrong, negative, downwards, mixed, levels, largest, ratio, below, under, over)

    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        blocks, block = self._blocks(count)
        size, half = packed_size(blocks * block, self.bits), 2 ** (self.bits - 1)
        some = slice(part.start // block, -(-part.stop // block))
        codes = unpack(held[:size], self.bits, blocks * block).view(blocks, block)[some]
        scales = held[size : size + 8 * blocks].clone().view(torch.float32)  # a copy is aligned
        largest, ratio = scales.view(-1, 2)[some].split(1, 1)
        mixed = ratio.signbit()
        place = torch.where(mixed, codes.remainder(half), codes)
        values = torch.exp2(place.sub(self._levels(mixed)).mul_(ratio.abs())).mul_(largest)
        values = torch.where(mixed.logical_and(codes > half), -values, values).masked_fill_(place == 0, 0)
        values.masked_fill_(codes == torch.where(mixed, half, 2 * half - 1), torch.nan)
        return values.view(-1)[: part.stop - part.start]

    def _levels(self, mixed: Tensor) -> Tensor:
        """Return the number ``M`` of levels above zero."""
        return torch.where(mixed, 2.0 ** (self.bits - 1) - 1, 2.0**self.bits - 2)


class _Places(NamedTuple):
    """The places of entries ``[blocks, block]`` among the levels of their blocks."""

    size: Tensor
    wrong: Tensor
    negative: Tensor
    downwards: Tensor
    mixed: Tensor
    levels: Tensor
    largest: Tensor
    ratio: Tensor
    below: Tensor
    under: Tensor
    over: Tensor


def _progression(size: Tensor, present: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for magnitudes in blocks, the largest, ``log2 r``, and the place of each among ``levels`` levels."""
    largest = size.amax(1, keepdim=True)
    logarithms = torch.where(present, size, largest).log2_().sub_(largest.log2()).nan_to_num_(0)  # at most 0
    count = present.sum(1, keepdim=True).clamp_(min=1)
    mean = logarithms.sum(1, keepdim=True) / count
    deviation = torch.where(present, logarithms - mean, 0).square_().sum(1, keepdim=True).div_(count).sqrt_()
    reached = torch.minimum(mean - _SPREAD * deviation, ((1 - levels) * _FINE).clamp_(min=-_DEEP))
    lowest = torch.maximum(logarithms.amin(1, keepdim=True), reached)
    ratio = lowest.abs() / (levels - 1).clamp_(min=1)
    place = torch.where(ratio == 0, levels, levels + logarithms / ratio)
    return largest, ratio, torch.where(present, place, 0).clamp_(min=0)
