"""How derivatives of elementwise functions are held: on a fixed grid where their range is known, else in blocks."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ..estimators.bits import pack, packed_size, unpack
from ..estimators.noise import Noise
from .dithered import Dithered
from .masks import pack_mask, unpack_mask


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
        """Bytes of codes."""
        return packed_size(count, self.bits)

    def encode(self, values: Tensor, noise: Noise) -> Tensor:
        """Packed codes ``⌊(v - first)/step + u⌋`` with ``u`` uniform in ``[0, 1)``; the mean over ``u`` is ``v``."""
        levels = noise.next(values.numel()).add_(0.5)
        levels.add_(values, alpha=1 / self.step).sub_(self.first / self.step)
        codes = levels.clamp_(0, 2**self.bits - 1).nan_to_num_(0).to(torch.uint8).view(1, -1)
        if missing := -codes.shape[1] % 8:
            codes = torch.cat([codes, codes.new_zeros(1, missing)], 1)
        return pack(codes, self.bits).view(-1)

    def decode(self, packed: Tensor, count: int, noise: Noise | None = None) -> Tensor:
        """The levels, in single precision."""
        return unpack(packed.view(1, -1), self.bits).view(-1)[:count].float().mul_(self.step).add_(self.first)


@dataclass(frozen=True)
class Blocks:
    """Flat entries of any range in :class:`.dithered.Dithered`, all in one tensor of bytes.

    Args:
        bits: Bits per entry.
        poles: Whether entries may be infinite. One more bit per entry then tells which are; they come back as NaN, and
            the others of their block are none the worse for them.

    Example:
        >>> slopes, noise = 1 / torch.tensor([1.0, 0.0, 2.0]), lambda: Noise(Draw(0), torch.device("cpu"))
        >>> from randbp.estimators.draw import Draw
        >>> held = Blocks(bits=8, poles=True).encode(slopes, noise())
        >>> bool((Blocks(8, True).decode(held, 3, noise()) - slopes)[[0, 2]].abs().max() < 1 / 255)
        True
    """

    bits: int
    poles: bool = False
    dithered: ClassVar[bool] = True

    def _layout(self, count: int) -> Dithered:
        return Dithered(self.bits, count, min(256, count))

    def nbytes(self, count: int) -> int:
        """Bytes of codes, scales and the mask of infinite entries."""
        return self._layout(count).nbytes(1) + (-(-count // 8) if self.poles else 0)

    def encode(self, values: Tensor, noise: Noise) -> Tensor:
        """What is held of flat values."""
        parts = []
        if self.poles:
            wrong = values.isfinite().logical_not_()
            values = values.masked_fill(wrong, 0)
            parts = [pack_mask(wrong)]
        codes, scales = self._layout(values.numel()).encode(values.view(1, -1), noise)
        return torch.cat([codes, scales.view(-1).view(torch.uint8), *parts])

    def decode(self, held: Tensor, count: int, noise: Noise) -> Tensor:
        """The entries, unbiased, in single precision."""
        values, _ = self.decode_with_scales(held, count, noise)
        if self.poles:
            values.masked_fill_(unpack_mask(held[self._layout(count).nbytes(1) :], count), torch.nan)
        return values

    def decode_with_scales(self, held: Tensor, count: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """The finite entries, and the scales, of which :meth:`variances` tells."""
        layout = self._layout(count)
        whole = layout.nbytes(1)
        size = whole - 8 * layout.blocks
        scales = held[size:whole].clone().view(torch.float32).view(1, -1, 2)  # a copy lies at an address that fits
        return layout.decode(held[:size], scales, noise).view(-1), scales

    def variances(self, scales: Tensor, count: int) -> Tensor:
        """Variance of each entry."""
        return self._layout(count).variances(scales).view(-1)
