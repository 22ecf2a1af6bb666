"""A codec for small integers, such as positions in a window, in a few bits each."""

from dataclasses import dataclass

from torch import Tensor

from ..kernels.packing import pack, packed_size, unpack
from .flat import Flat
from .stream import Stream


@dataclass(frozen=True)
class Codes(Flat):
    """Packing of integers from 0 to ``2^bits - 1``; it is exact.

    Args:
        bits: Bits per entry, 1 to 8.

    Example:
        >>> import torch
        >>> codes = torch.tensor([3, 0, 2], dtype=torch.uint8)
        >>> held = Codes(2).encode(codes)
        >>> held.nbytes, Codes(2).decode(held, 3)
        (2, tensor([3, 0, 2], dtype=torch.uint8))
    """

    bits: int

    def nbytes(self, count: int) -> int:
        """Return ``bits`` bytes for every eight entries, rounded up."""
        return packed_size(count, self.bits)

    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """Pack flat integers, ``uint8``."""
        return pack(values, self.bits)

    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        return unpack(held, self.bits, count)[part]
