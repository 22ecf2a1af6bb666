"""What all ways to hold flat entries have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .stream import Stream


class Flat(ABC):
    """How flat entries are held in one tensor of bytes: encode, decode all or some, bytes and variance."""

    dithered: ClassVar[bool] = False
    """Whether decoding needs the noise again."""

    unit: ClassVar[int] = 1
    """Entries of which a multiple must lie before those that are decoded alone [entries]."""

    @abstractmethod
    def nbytes(self, count: int) -> int:
        """Bytes of so many entries."""

    @abstractmethod
    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """What is held of flat values, ``uint8``. What is exact needs no noise."""

    def decode(self, held: Tensor, count: int, noise: Stream | None = None, part: slice | None = None) -> Tensor:
        """The entries, or a part of them, unbiased.

        Args:
            held: What :meth:`encode` made.
            count: How many entries that are, in all.
            noise: Where encoding began, if its noise is subtracted again; it is taken of as for all entries.
            part: Which entries; its start is a multiple of :attr:`unit`.

        Raises:
            ValueError: If it is not, or there is no noise where one is needed.
        """
        start, stop, step = (slice(None) if part is None else part).indices(count)
        if start % self.unit or step != 1:
            raise ValueError(f"part={part}: expected to begin at a multiple of {self.unit}, without steps")
        end = max(start, min(count, -(-stop // self.unit) * self.unit))
        return self._decode(held, count, noise, slice(start, end))[: max(0, stop - start)]

    @abstractmethod
    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        """A part that begins and ends at multiples of :attr:`unit`, or ends with the entries."""

    def variance(self, values: Tensor) -> Tensor:
        """Variance over the noise of each entry that is decoded of these values; NaN of those that come back as NaN.

        Zeros of what is exact.

        Example:
            >>> from randbp.codecs import Mask
            >>> Mask().variance(torch.tensor([True, False]))
            tensor([0., 0.])
        """
        return torch.zeros(values.shape, device=values.device)

    def times(self, values: Tensor, held: Tensor, noise: Stream | None = None) -> Tensor:
        """Flat values times the entries, in the values' dtype."""
        entries = self.decode(held, len(values), noise)
        return values * entries if values.dtype == torch.float64 else entries.mul_(values).to(values.dtype)


def needed(noise: Stream | None) -> Stream:
    """Noise that must be there."""
    if noise is None:
        raise ValueError("noise=None: expected a stream")
    return noise
