"""A codec for numbers of a known range, such as derivatives of activations, on equally spaced levels."""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels import times_grid, to_grid
from ..kernels.grid_bits import codes_of, grid_bytes, spoilt_blocks, stretched
from ..kernels.mask_bits import bits_of
from ..kernels.noise import BLOCK
from .flat import Flat, needed
from .stream import Stream


@dataclass(frozen=True)
class Grid(Flat):
    """Stochastic rounding of flat entries to levels ``first + step·k``, ``k = 0 … 2^bits - 1``, that span a range.

    Where there are enough levels, 0 and 1 are among them, so that saturated entries are exact. Rounding is unbiased,
    with a variance of at most ``step² / 4`` per entry. Entries that are not finite are decoded as NaN, and do not
    change others (with one bit, the 256 entries of their block are NaN).

    Args:
        first: The lowest level.
        step: The distance of neighbouring levels.
        bits: Bits per entry, 1 to 8.

    Example:
        >>> Grid.over(-0.13, 1.13, bits=4)
        Grid(first=-0.18181818181818182, step=0.09090909090909091, bits=4)
    """

    first: float
    step: float
    bits: int
    unit: ClassVar[int] = BLOCK

    @staticmethod
    def over(low: float, high: float, bits: int) -> "Grid":
        """Return the finest grid over ``[low, high]`` with 0 and 1 among its levels, if these are enough."""
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
        """Return the bytes of codes, and of one bit per block of 256."""
        return grid_bytes(count, self.bits)

    def encode(self, values: Tensor, noise: Stream | None = None) -> Tensor:
        """Encode flat values as ``uint8``."""
        return self.encode_slopes(values, "", [1.0, 0.0, 0.0], needed(noise))

    def encode_slopes(self, x: Tensor, function: str, parameters: list[float], noise: Stream) -> Tensor:
        """Encode the derivatives of an activation at flat ``x``: see :func:`randbp.kernels.to_grid`."""
        first, inverse = noise.take(-(-len(x) // BLOCK)), 1 / self.step
        held: Tensor = to_grid(x, function, parameters, noise.seed, first, self.bits, inverse, self._zero)
        return held

    def _decode(self, held: Tensor, count: int, noise: Stream | None, part: slice) -> Tensor:
        size = part.stop - part.start
        if size < count:
            marks = spoilt_blocks(held, count, self.bits)[part.start // BLOCK : -(-part.stop // BLOCK)]
            held = torch.cat([held[codes_of(part, self.bits)], bits_of(marks)])
        return self.times(torch.ones(size, device=held.device), held)

    def variance(self, values: Tensor) -> Tensor:
        """Return ``h² f (1 - f)``, with ``f`` the fractional part of an entry's place among the levels.

        ``h`` is their distance. It is wider in a block with entries that are not finite, since the last level stands
        for these; with one bit, such a block is NaN.

        Example:
            >>> Grid(first=0.0, step=2.0, bits=3).variance(torch.tensor([0.0, 1.0, 3.5]))
            tensor([0.0000, 1.0000, 0.7500])
        """
        top, wrong = 2**self.bits - 1, values.isfinite().logical_not_()
        spoilt = torch.cat([some.any(0, keepdim=True).expand(len(some)) for some in wrong.split(BLOCK)])
        less, more = stretched(self.bits)
        place = (values.float() / self.step).add_(self._zero)
        place, distance = (
            torch.where(spoilt, x * by, x) for x, by in ((place, less), (place.new_tensor(self.step), more))
        )
        share = place.clamp_(0, top).frac()
        return ((1 - share) * share * distance.square()).masked_fill_(spoilt if top == 1 else wrong, torch.nan)

    def times(self, values: Tensor, held: Tensor, noise: Stream | None = None) -> Tensor:
        """Multiply flat values by the decoded entries in one pass."""
        product: Tensor = times_grid(values, held, self.bits, self.step, self._zero)
        return product
