"""Noise by counter, block after block, for what is encoded piece by piece."""

import torch
from torch import Tensor

from ..kernels.noise import BLOCK, uniform


class Stream:
    """Hands out the blocks of a noise (:mod:`randbp.kernels.noise`) in turn.

    Args:
        seed: Equal seeds give equal numbers, on all devices.
        device: Where numbers are needed.

    Example:
        >>> values = Stream(3, torch.device("cpu")).next(1000)
        >>> bool((values == Stream(3, torch.device("cpu")).next(1000)).all()), float(values.abs().max()) < 0.5
        (True, True)
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self._device, self._position = seed, device, 0

    def take(self, blocks: int) -> int:
        """The number of the first of so many blocks, which nobody else gets."""
        first, self._position = self._position, self._position + blocks
        return first

    def next(self, count: int) -> Tensor:
        """So many numbers in ``(-1/2, 1/2)``, in single precision, from whole blocks of 256."""
        blocks = -(-count // BLOCK)
        numbers = torch.arange(self.take(blocks), self._position, device=self._device)
        return uniform(self.seed, numbers, BLOCK).view(-1)[:count].sub_(0.5)
