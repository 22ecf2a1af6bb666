"""Samplers: which places are kept, and with which weights."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..draws.draw import Draw, windows
from .base import kept
from .inclusion import weighted_draw
from .positions import flat_positions

Sample = tuple[Tensor, Tensor | float]
"""Kept places ``[B, S]``, or ``[1, S]`` if all sums share them, and their weights: as many, or one for all."""


@dataclass(frozen=True)
class Places:
    """The terms of ``B`` independent sums, of which a sampler keeps some."""

    batch: int  # B
    shape: tuple[int, ...]  # the grid of each sum's terms, U of them
    keep: float
    count: int = 0  # number to keep, if it is fixed

    @property
    def size(self) -> int:
        """``U``."""
        return prod(self.shape)


@dataclass(frozen=True)
class Sampler(ABC):
    """A way to choose places."""

    unbiased: ClassVar[bool] = True  # whether each weight is one over the probability of being kept
    by_norm: ClassVar[bool] = False  # whether the choice depends on norms: kept places have to be stored for backward

    @property
    def fixed_size(self) -> bool:
        """Whether the number of places kept is fixed."""
        return True

    def count(self, places: Places) -> float:
        """Number of places to keep of each sum; its mean if it is random."""
        return kept(places.size, places.keep)

    @abstractmethod
    def sample(self, places: Places, norms: Tensor | None, draw: Draw, device: torch.device) -> Sample:
        """Choose ``places.count`` places of each sum, by the norms of its terms ``[B, U]`` if these matter."""


@dataclass(frozen=True)
class Uniform(Sampler):
    """Keep a fixed number, drawn without replacement."""

    shared: bool = False  # whether all sums share the choice

    def sample(self, places: Places, norms: Tensor | None, draw: Draw, device: torch.device) -> Sample:
        """Choose by :func:`windows`."""
        batch = 1 if self.shared else places.batch
        return windows(draw, places.size, places.count, batch, device), places.size / max(1, places.count)


@dataclass(frozen=True)
class Bernoulli(Sampler):
    """Keep each place on its own with probability ``p``, the same places of all sums."""

    fixed_size = False

    def count(self, places: Places) -> float:
        """The mean number."""
        return places.size * places.keep

    def sample(self, places: Places, norms: Tensor | None, draw: Draw, device: torch.device) -> Sample:
        """Choose on the host, where the random size has to be known."""
        return coins(places.size, places.keep, draw).unsqueeze(0).to(device, non_blocking=True), 1 / places.keep


@dataclass(frozen=True)
class Crossings(Sampler):
    """Keep the crossings of kept rows and columns, the same of all sums: ``p^(1/d)`` of each of ``d`` dimensions."""

    bernoulli: bool = False  # whether each coordinate is kept on its own with that probability; else a fixed number is

    @property
    def fixed_size(self) -> bool:
        """True unless draws are Bernoulli."""
        return not self.bernoulli

    def count(self, places: Places) -> float:
        """The (mean) number of crossings."""
        return places.size * places.keep if self.bernoulli else prod(grid_counts(places.shape, places.keep))

    def sample(self, places: Places, norms: Tensor | None, draw: Draw, device: torch.device) -> Sample:
        """Choose coordinates one dimension after the other, on the host."""
        shape, rate, axes = places.shape, places.keep ** (1 / max(1, len(places.shape))), []
        for dim, (size, count) in enumerate(zip(shape, grid_counts(shape, places.keep), strict=True)):
            each = draw.child(dim)
            chosen = coins(size, rate, each) if self.bernoulli else each.permutation(size)[:count].sort().values
            axes.append(tuple(chosen.tolist()))
        where = flat_positions(tuple(axes), shape, device)
        weight = 1 / places.keep if self.bernoulli else places.size / max(1, len(where))
        return where.unsqueeze(0), weight if shape else 1.0


@dataclass(frozen=True)
class ByNorm(Sampler):
    """Keep a fixed number, drawn without replacement in proportion to norms: see :func:`.inclusion.weighted_draw`.

    Args:
        top: Share of them that goes to the largest norms without a draw.
        shuffled: Whether the order in which places are run through is random. A systematic draw of few places in a
            fixed order would have few outcomes.
    """

    by_norm = True
    top: float = 0.0
    shuffled: bool = False

    def sample(self, places: Places, norms: Tensor | None, draw: Draw, device: torch.device) -> Sample:
        """Choose systematically."""
        assert norms is not None
        generator = draw.generator(device)
        start = torch.rand(len(norms), 1, generator=generator, device=device)
        if not self.shuffled:
            return weighted_draw(norms, places.count, self.top, start)
        order = torch.rand(norms.shape, generator=generator, device=device).argsort(1)
        drawn, weights = weighted_draw(norms.gather(1, order), places.count, self.top, start)
        return order.gather(1, drawn), weights


@dataclass(frozen=True)
class Largest(Sampler):
    """Keep those of largest norm, with weight 1: biased."""

    unbiased, by_norm = False, True

    def sample(self, places: Places, norms: Tensor | None, draw: Draw, device: torch.device) -> Sample:
        """Choose without a draw."""
        assert norms is not None
        return norms.topk(places.count, dim=1, sorted=False).indices, 1.0


def coins(size: int, rate: float, draw: Draw) -> Tensor:
    """Which of ``size`` tosses succeed, each with the same probability; on the host."""
    return (torch.rand(size, generator=draw.generator()) < rate).nonzero().flatten()


@lru_cache(maxsize=512)
def grid_counts(sizes: tuple[int, ...], keep: float) -> tuple[int, ...]:
    """Coordinates to keep per axis: near ``p^(1/d)`` of each, together at most ``p`` (but at least one per axis).

    Example:
        >>> grid_counts((32, 32), 0.5)  # 23 · 22 = 506 of 1024
        (23, 22)
    """
    rate = keep ** (1 / max(1, len(sizes)))
    counts = [min(size, max(1, int(size * rate + 1e-9))) for size in sizes]
    for axis in sorted(range(len(sizes)), key=lambda j: counts[j] - sizes[j] * rate):
        larger = prod(counts) // max(1, counts[axis]) * (counts[axis] + 1)
        if counts[axis] < sizes[axis] and larger <= prod(sizes) * keep:
            counts[axis] += 1
    return tuple(counts)
