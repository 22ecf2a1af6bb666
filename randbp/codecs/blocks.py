"""Flat entries of any range in a few bits, all in one tensor of bytes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .stream import Stream
from .uniform import Uniform


@dataclass(frozen=True)
class Blocks:
    """Flat entries of any range in :class:`.Uniform`, all in one tensor of bytes.

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

    def times(self, values: Tensor, held: Tensor, noise: Stream | None) -> Tensor:
        """Flat values times the entries, in the values' dtype."""
        assert noise is not None
        entries = self.decode(held, len(values), noise)
        return values * entries if values.dtype == torch.float64 else entries.mul_(values).to(values.dtype)

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
