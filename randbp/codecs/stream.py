"""A counter over the blocks of a noise, for tensors that are encoded piece by piece."""

import torch
from torch import Tensor

from ..kernels.noise import BLOCK, uniform


class Stream:
    """A stream that hands out the blocks of a noise (:mod:`randbp.kernels.noise`), each of them once.

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
        """Reserve ``blocks`` blocks, and return the number of the first."""
        first, self._position = self._position, self._position + blocks
        return first

    def next(self, count: int) -> Tensor:
        """Return ``count`` numbers in ``(-1/2, 1/2)``, single precision, from whole blocks of 256."""
        blocks = -(-count // BLOCK)
        numbers = torch.arange(self.take(blocks), self._position, device=self._device)
        return uniform(self.seed, numbers, BLOCK).view(-1)[:count].sub_(0.5)
