"""A codec for masks, in one bit per entry."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels import inside, masked, unmask
from ..kernels.mask_bits import BLOCK, bytes_of, mask_bytes
from .flat import Flat
from .stream import Stream


@dataclass(frozen=True)
class Mask(Flat):
    """Packing of a flat ``bool`` tensor, or of the result of a comparison, in one bit per entry.

    Example:
        >>> mask = Mask()
        >>> bits = mask.encode(torch.tensor([True, False, True]))
        >>> bits, mask.decode(bits, 3), mask.apply(bits, torch.ones(3), other=0.5)
        (tensor([5], dtype=torch.uint8), tensor([ True, False,  True]), tensor([1.0000, 0.5000, 1.0000]))
    """

    unit: ClassVar[int] = BLOCK

    def nbytes(self, count: int) -> int:
        """Return the bytes of a mask of ``count`` entries."""
        return mask_bytes(count)

    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """Pack a ``bool`` mask as ``uint8``."""
        return self.where(values, "true")

    def where(self, values: Tensor, test: str, low: float = 0.0, high: float = torch.inf) -> Tensor:
        """Compare flat entries and pack the result; the tests are those of :func:`randbp.kernels.inside`."""
        bits: Tensor = inside(values, test, low, high)
        return bits

    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        mask: Tensor = unmask(held[bytes_of(part)], part.stop - part.start)
        return mask

    def apply(self, bits: Tensor, values: Tensor, factor: float = 1.0, other: float | None = None) -> Tensor:
        """Multiply flat entries by one of two numbers, chosen by the bits: see :func:`randbp.kernels.masked`."""
        result: Tensor = masked(values, bits, factor, other)
        return result
