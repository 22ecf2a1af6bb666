"""Numbers of a known range, such as derivatives of activations, on equally spaced levels."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels import slope_to_grid, times_grid, to_grid
from ..kernels.grid_bits import grid_bytes
from ..kernels.noise import BLOCK
from .stream import Stream


@dataclass(frozen=True)
class Grid:
    """Levels ``first + step·k`` with ``k = 0 … 2^bits - 1`` that span a range, for flat entries in ``bits`` bits each.

    Where there are enough levels, 0 and 1 are among them, so that saturated entries are exact. Rounding is stochastic
    and unbiased; entries that are not finite come back as NaN and leave others alone (with one bit, 256 entries that
    lie together are NaN). Of any entry the variance is at most ``step² / 4``.

    Example:
        >>> Grid.over(-0.13, 1.13, bits=4)
        Grid(first=-0.18181818181818182, step=0.09090909090909091, bits=4)
    """

    first: float
    step: float
    bits: int
    dithered: ClassVar[bool] = False

    @staticmethod
    def over(low: float, high: float, bits: int) -> "Grid":
        """The finest such grid over ``[low, high]``."""
        levels = 2**bits - 1
        parts = int(levels / (high - low))
        while parts and ceil(-low * parts - 1e-9) + ceil(high * parts - 1e-9) > levels:
            parts -= 1
        if not parts:
            return Grid(low, (high - low) / levels, bits)
        return Grid(-ceil(-low * parts - 1e-9) / parts, 1 / parts, bits)

    @property
    def _zero(self) -> float:
        return -self.first / self.step

    def nbytes(self, count: int) -> int:
        """Bytes of codes, and of one bit per block of 256."""
        return grid_bytes(count, self.bits)

    def encode(self, values: Tensor, noise: Stream) -> Tensor:
        """What is held of flat values, ``uint8``; the mean over the noise is the values."""
        first = noise.take(-(-len(values) // BLOCK))
        held: Tensor = to_grid(values, noise.seed, first, self.bits, 1 / self.step, self._zero)
        return held

    def encode_slopes(self, x: Tensor, function: str, parameters: list[float], noise: Stream) -> Tensor:
        """What is held of the derivatives of an activation at flat ``x``: see :func:`randbp.kernels.slope_to_grid`."""
        first = noise.take(-(-len(x) // BLOCK))
        inverse = 1 / self.step
        held: Tensor = slope_to_grid(x, function, parameters, noise.seed, first, self.bits, inverse, self._zero)
        return held

    def decode(self, held: Tensor, count: int, noise: Stream | None = None) -> Tensor:
        """The levels, in single precision."""
        return self.times(torch.ones(count, device=held.device), held)

    def times(self, values: Tensor, held: Tensor, noise: Stream | None = None) -> Tensor:
        """Flat values times what is held."""
        product: Tensor = times_grid(values, held, self.bits, self.step, self._zero)
        return product
