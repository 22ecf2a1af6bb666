"""How derivatives of elementwise functions are held: on a fixed grid where their range is known, else in blocks."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..codecs import Stream, Uniform
from ..kernels.packing import pack, packed_size, to_bytes, unpack
from .geometric import Geometric
from .masks import pack_mask, unpack_mask

_BLOCK = 256
"""Entries of a grid that share the mark of what is not finite."""


@dataclass(frozen=True)
class Grid:
    """Levels ``first + step·k`` with ``k = 0 … 2^bits - 1`` that span the range of a derivative.

    Where there are enough levels, 0 and 1 are among them, so that saturated entries are exact.

    Example:
        >>> Grid.over(-0.13, 1.13, bits=4)
        Grid(first=-0.18181818181818182, step=0.09090909090909091, bits=4)
    """

    first: float
    step: float
    bits: int
    dithered: ClassVar[bool] = False

    @staticmethod
    def over(low: float, high: float, bits: int) -> "Grid":
        """The finest such grid over ``[low, high]``."""
        levels = 2**bits - 1
        parts = int(levels / (high - low))
        while parts and ceil(-low * parts - 1e-9) + ceil(high * parts - 1e-9) > levels:
            parts -= 1
        if not parts:
            return Grid(low, (high - low) / levels, bits)
        return Grid(-ceil(-low * parts - 1e-9) / parts, 1 / parts, bits)

    def nbytes(self, count: int) -> int:
        """Bytes of codes, and of one bit per block."""
        return packed_size(count, self.bits) + packed_size(-(-count // _BLOCK), 1)

    def encode(self, values: Tensor, noise: Stream) -> Tensor:
        """Packed codes ``⌊(v - first)/step + u⌋`` with ``u`` uniform in ``[0, 1)``; the mean over ``u`` is ``v``.

        A block with entries that are not finite keeps its last code for these (:mod:`..estimators.spoilt`).
        """
        count, top = values.numel(), 2**self.bits - 1
        spoilt = torch.zeros(-(-count // _BLOCK), dtype=torch.bool, device=values.device)
        levels = noise.next(count).add_(0.5)
        if values.device.type == "cpu" and bool(values.sum(dtype=torch.float32).isfinite()):
            levels.add_(values, alpha=1 / self.step).sub_(self.first / self.step).clamp_(0, top)
        else:
            wrong = values.isfinite().logical_not_()
            spoilt = F.pad(wrong, (0, -count % _BLOCK)).view(-1, _BLOCK).any(1)
            narrow = _of_entries(spoilt, count)
            place = values.sub(self.first).div_(self.step).nan_to_num_(0)
            levels.add_(torch.where(narrow, place * ((top - 1) / top), place)).clamp_(0, top)
            levels = torch.where(narrow, levels.clamp(max=top - 0.5), levels).masked_fill_(wrong, top)
        return torch.cat([pack(to_bytes(levels), self.bits), pack_mask(spoilt)])

    def decode(self, packed: Tensor, count: int, noise: Stream | None = None) -> Tensor:
        """The levels, in single precision."""
        size, top = packed_size(count, self.bits), 2**self.bits - 1
        codes = unpack(packed[:size], self.bits, count)
        values, marks = codes.float().mul_(self.step), packed[size:]
        if packed.device.type != "cpu" or bool(marks.any()):
            narrow = _of_entries(unpack_mask(marks, -(-count // _BLOCK)), count)
            values = torch.where(narrow, values * (top / max(1, top - 1)), values)
            values.masked_fill_(narrow.logical_and_(codes == top) if top > 1 else narrow, torch.nan)
        return values.add_(self.first)


def _of_entries(blocks: Tensor, count: int) -> Tensor:
    """What is known of each block, for each of its entries."""
    return blocks.repeat_interleave(_BLOCK)[:count]


@dataclass(frozen=True)
class Blocks:
    """Flat entries of any range in :class:`randbp.codecs.Uniform`, all in one tensor of bytes.

    Args:
        bits: Bits per entry.

    Example:
        >>> slopes, noise = torch.tensor([1.0, 0.0, 2.0]), lambda: Stream(0, torch.device("cpu"))
        >>> held = Blocks(bits=8).encode(slopes, noise())
        >>> bool((Blocks(8).decode(held, 3, noise()) - slopes).abs().max() < 1 / 255)
        True
    """

    bits: int
    dithered: ClassVar[bool] = True

    def _layout(self, count: int) -> Uniform:
        return Uniform(self.bits, count, min(256, count), dithered=True)

    def nbytes(self, count: int) -> int:
        """Bytes of codes and scales."""
        return self._layout(count).nbytes(1)

    def encode(self, values: Tensor, noise: Stream) -> Tensor:
        """What is held of flat values."""
        layout = self._layout(values.numel())
        codes, scales = layout.encode(values.view(1, -1).float(), noise.seed, noise.take(layout.blocks))
        return torch.cat([codes.view(-1), scales.view(-1).view(torch.uint8)])

    def decode(self, held: Tensor, count: int, noise: Stream) -> Tensor:
        """The entries, unbiased, in single precision."""
        return self.decode_with_scales(held, count, noise)[0]

    def decode_with_scales(self, held: Tensor, count: int, noise: Stream) -> tuple[Tensor, Tensor]:
        """The entries, and the scales, of which :meth:`variances` tells."""
        layout = self._layout(count)
        whole = layout.nbytes(1)
        size = whole - 8 * layout.blocks
        scales = held[size:whole].clone().view(torch.float32).view(1, -1, 2)  # a copy lies at an address that fits
        return layout.decode(held[:size].view(1, -1), scales, noise.seed, noise.take(layout.blocks)).view(-1), scales

    def variances(self, scales: Tensor, count: int) -> Tensor:
        """Variance of each entry."""
        return self._layout(count).variances(scales).view(-1)


Slopes = Grid | Blocks | Geometric
"""How derivatives may be held."""


def slopes(bits: int, poles: bool) -> Blocks | Geometric:
    """How derivatives of unknown range are held: those with poles in one more bit, with small relative errors."""
    return Geometric(min(8, bits + 1)) if poles else Blocks(bits)
