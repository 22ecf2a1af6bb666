"""Yes or no per entry, in one bit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import inside, masked, unmask
from ..kernels.mask_bits import mask_bytes


@dataclass(frozen=True)
class Mask:
    """How a flat ``bool`` tensor, or what entries pass a comparison, is held in one bit per entry.

    Args:
        entries: Number of entries.

    Example:
        >>> mask = Mask(3)
        >>> bits = mask.encode(torch.tensor([True, False, True]))
        >>> bits, mask.decode(bits), mask.apply(bits, torch.ones(3), other=0.5)
        (tensor([5], dtype=torch.uint8), tensor([ True, False,  True]), tensor([1.0000, 0.5000, 1.0000]))
    """

    entries: int

    @property
    def nbytes(self) -> int:
        """Bytes of the bits."""
        return mask_bytes(self.entries)

    def encode(self, mask: Tensor) -> Tensor:
        """The bits of a mask, ``uint8``."""
        bits: Tensor = inside(mask, "true", 0.0, 0.0)
        return bits

    def where(self, values: Tensor, test: str, low: float = 0.0, high: float = torch.inf) -> Tensor:
        """The bits of where flat entries pass a test of :func:`randbp.kernels.inside`."""
        bits: Tensor = inside(values, test, low, high)
        return bits

    def decode(self, bits: Tensor) -> Tensor:
        """The mask."""
        mask: Tensor = unmask(bits, self.entries)
        return mask

    def apply(self, bits: Tensor, values: Tensor, factor: float = 1.0, other: float | None = None) -> Tensor:
        """Flat entries times the one number or the other: see :func:`randbp.kernels.masked`."""
        result: Tensor = masked(values, bits, factor, other)
        return result
