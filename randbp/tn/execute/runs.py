"""Runs: where ``Π`` with one leg summed joins each target to equally spaced sources.

Nearly all of a run is shared with the others: a 3 x 3 kernel with padding 1 adds up all rows, all but the first, and
all but the last. So what the runs share is added up once, in one pass over the tensor. What is left is short: that sum
and the few rows that some runs leave out, the *segments*, of which every target is a 0/1 combination.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """How the sources of a 0/1 band fall into segments.

    The segments are the sources from ``first`` to ``low``, one sum per residue of the block from ``low`` to ``high``
    modulo ``step``, and the sources from ``high`` to ``stop``.

    Args:
        first: The first source that a target meets.
        low: Start of the block, a multiple of the step.
        high: End of the block, a multiple of the step.
        stop: End of the sources that a target meets.
        step: Distance of the sources of a target.
    """

    first: int
    low: int
    high: int
    stop: int
    step: int

    @property
    def count(self) -> int:
        """Number of segments."""
        return self.low - self.first + self.step + self.stop - self.high

    def combine(self, band: Tensor) -> Tensor:
        """The band ``[targets, sources]`` as one between segments: ``[targets, segments]``."""
        parts = [band[:, self.first : self.low], band[:, self.low : self.low + self.step]]
        return torch.cat([*parts, band[:, self.high : self.stop]], dim=1)


def find_runs(band: Tensor) -> Runs | None:
    """The segments of a 0/1 band ``[targets, sources]``; None unless all targets are runs that meet one block."""
    if band.numel() == 0 or band.max() > 1:
        return None
    rows = [row.nonzero().flatten().tolist() for row in band]
    step = gcd(*(later - earlier for ones in rows for earlier, later in pairwise(ones))) or 1
    if any(not ones or ones != list(range(ones[0], ones[-1] + 1, step)) for ones in rows):
        return None
    low = max(-(-(ones[0] - ones[0] % step) // step) for ones in rows)
    high = min((ones[-1] - ones[-1] % step) // step + 1 for ones in rows)
    high = min(high, band.shape[1] // step)
    if low >= high:
        return None
    first, stop = min(ones[0] for ones in rows), max(ones[-1] for ones in rows) + 1
    return Runs(min(first, low * step), low * step, high * step, max(stop, high * step), step)


def segments(x: Tensor, runs: Runs, out: Tensor) -> Tensor:
    """Write ``x [B, sources, T]`` as segments into ``out [B, segments, T]``, and return that."""
    below, block = runs.low - runs.first, runs.high - runs.low
    if below:
        out[:, :below] = x[:, runs.first : runs.low]
    core = x[:, runs.low : runs.high].unflatten(1, (block // runs.step, runs.step))
    out[:, below : below + runs.step] = core.sum(1, dtype=x.dtype)
    if runs.stop > runs.high:
        out[:, below + runs.step :] = x[:, runs.high : runs.stop]
    return out
