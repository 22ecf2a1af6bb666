"""A codec for flat entries of any range: levels are equally spaced within each block of 256 entries."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels.noise import BLOCK
from ..kernels.packing import packed_size
from .flat import Flat, needed
from .stream import Stream
from .uniform import Uniform


@dataclass(frozen=True)
class Blocks(Flat):
    """Dithered rounding of flat entries of any range by :class:`.Uniform`; one tensor holds codes and scales.

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
    unit: ClassVar[int] = BLOCK

    def _layout(self, count: int) -> Uniform:
        return Uniform(self.bits, count, max(1, min(BLOCK, count)), dithered=True)

    def nbytes(self, count: int) -> int:
        """Return the bytes of codes and scales."""
        return self._layout(count).nbytes(1)

    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """Encode flat values as ``uint8``."""
        layout, stream = self._layout(values.numel()), needed(noise)
        codes, scales = layout.encode(values.view(1, -1).float(), stream.seed, stream.take(layout.blocks))
        return torch.cat([codes.view(-1), scales.view(-1).view(torch.uint8)])

    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        stream, layout = needed(noise), self._layout(count)
        codes, scales = self._split(held, layout)
        first, some = part.start // BLOCK, Uniform(self.bits, part.stop - part.start, layout.block, dithered=True)
        codes, scales = codes[:, first * packed_size(BLOCK, self.bits) :], scales[:, first : first + some.blocks]
        return some.decode(codes, scales, stream.seed, stream.take(layout.blocks) + first).view(-1)

    def variance(self, values: Tensor) -> Tensor:
        """Return ``h²/12`` of each entry, with ``h`` the step of its block.

        Example:
            >>> Blocks(bits=2).variance(torch.tensor([0.0, 18.0]))  # h = 6
            tensor([3.0002, 3.0002])
        """
        return self._layout(values.numel()).variance(values.view(1, -1).float()).view(-1)

    def decode_with_scales(self, held: Tensor, count: int, noise: Stream) -> tuple[Tensor, Tensor]:
        """Decode all entries, and return the scales, which :meth:`variances` needs, as well."""
        layout = self._layout(count)
        codes, scales = self._split(held, layout)
        return layout.decode(codes, scales, noise.seed, noise.take(layout.blocks)).view(-1), scales

    @staticmethod
    def _split(held: Tensor, layout: Uniform) -> tuple[Tensor, Tensor]:
        """Split bytes into codes and scales of one row."""
        whole = layout.nbytes(1)
        size = whole - 8 * layout.blocks
        scales = held[size:whole].clone().view(torch.float32).view(1, -1, 2)  # a copy is aligned
        return held[:size].view(1, -1), scales

    def variances(self, scales: Tensor, count: int) -> Tensor:
        """Return the variance of each entry, given the scales."""
        return self._layout(count).variances(scales).view(-1)
