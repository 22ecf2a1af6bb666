"""Uniform noise for rounding: a function of a draw, cheap to draw and to draw again."""

import torch
from torch import Tensor

from .draw import Draw


class Noise:
    """A stream of numbers ``(2 j + 1) / 2^17 - 1/2``, ``j`` uniform in ``0 … 2^16 - 1``.

    Sixteen bits are as fine as the rounding of single precision to a few bits can show, and four of them come from one
    64-bit draw.

    Args:
        draw: Equal draws give equal streams on one kind of device.
        device: Where the numbers are needed.

    Example:
        >>> values = Noise(Draw(3), torch.device("cpu")).next(1000)
        >>> bool((values == Noise(Draw(3), torch.device("cpu")).next(1000)).all()), float(values.abs().max()) < 0.5
        (True, True)
    """

    def __init__(self, draw: Draw, device: torch.device) -> None:
        self._generator, self._device = draw.generator(device), device

    def next(self, count: int) -> Tensor:
        """The next numbers, in single precision."""
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self._device)
        words.random_(-(2**63), None, generator=self._generator)
        return words.view(torch.int16)[:count].float().add_(0.5).mul_(2**-16)
