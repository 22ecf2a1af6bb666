"""The interface of codecs that hold flat entries in one tensor of bytes."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .stream import Stream


class Flat(ABC):
    """A codec that encodes flat entries as one tensor of bytes, and decodes all or some of them."""

    dithered: ClassVar[bool] = False
    """Whether decoding needs the noise of encoding again."""

    unit: ClassVar[int] = 1
    """A part that is decoded alone begins at a multiple of this number [entries]."""

    @abstractmethod
    def nbytes(self, count: int) -> int:
        """Return how many bytes ``count`` entries take."""

    @abstractmethod
    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """Encode flat values as ``uint8``; an exact codec needs no noise."""

    def decode(self, held: Tensor, count: int, noise: Stream | None = None, part: slice | None = None) -> Tensor:
        """Decode the entries, or a part of them; their mean over the noise is the values that were encoded.

        Args:
            held: What :meth:`encode` returned.
            count: Number of entries that were encoded.
            noise: A stream at the place where encoding began, if the codec is dithered; it advances as for all entries.
            part: A slice of the entries without steps; its start is a multiple of :attr:`unit`.

        Raises:
            ValueError: If the part begins elsewhere, or a dithered codec gets no noise.
        """
        start, stop, step = (slice(None) if part is None else part).indices(count)
        if start % self.unit or step != 1:
            raise ValueError(f"part={part}: expected to begin at a multiple of {self.unit}, without steps")
        end = max(start, min(count, -(-stop // self.unit) * self.unit))
        return self._decode(held, count, noise, slice(start, end))[: max(0, stop - start)]

    @abstractmethod
    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        """Decode a part that begins and ends at multiples of :attr:`unit`, or ends with the entries."""

    def variance(self, values: Tensor) -> Tensor:
        """Return the variance over the noise of each decoded entry; NaN of those that are decoded as NaN.

        Example:
            >>> from randbp.codecs import Mask
            >>> Mask().variance(torch.tensor([True, False]))
            tensor([0., 0.])
        """
        return torch.zeros(values.shape, device=values.device)

    def times(self, values: Tensor, held: Tensor, noise: Stream | None = None) -> Tensor:
        """Multiply flat values by the decoded entries; the result has the values' dtype."""
        entries = self.decode(held, len(values), noise)
        return values * entries if values.dtype == torch.float64 else entries.mul_(values).to(values.dtype)


def needed(noise: Stream | None) -> Stream:
    """Return the noise, or raise an error if there is none."""
    if noise is None:
        raise ValueError("noise=None: expected a stream")
    return noise
