"""Runs: kept positions that are neighbours in memory and therefore read in one piece."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Runs:
    """Positions ``[N or 1, R·L]`` given as numbers of runs, each of ``L`` neighbouring positions.

    Args:
        numbers: ``[N or 1, R]``.
        length: ``L``.

    Example:
        >>> Runs(torch.tensor([[0, 2]]), 2).positions
        tensor([[0, 1, 4, 5]])
    """

    numbers: Tensor
    length: int = 1

    @property
    def positions(self) -> Tensor:
        """All positions, one by one."""
        if self.length == 1:
            return self.numbers
        within = steps(self.length, 1, self.numbers.device)
        return (self.numbers.unsqueeze(2) * self.length + within).flatten(1)

    @property
    def examples(self) -> int:
        """The number of examples ``N``, or 1 if all share the positions."""
        return len(self.numbers)

    @property
    def count(self) -> int:
        """Number of positions of each example."""
        return self.numbers.shape[1] * self.length

    def of(self, part: slice) -> "Runs":
        """The runs of some examples."""
        return self if self.examples == 1 else Runs(self.numbers[part], self.length)


def joined(several: Sequence[Runs]) -> Runs:
    """Concatenate the positions of several objects; they stay runs only if there is a single object."""
    return several[0] if len(several) == 1 else Runs(torch.cat([each.positions for each in several], 1))


def steps(count: int, step: int, device: torch.device) -> Tensor:
    """The first ``count`` multiples of ``step``: ``0, step, 2 step …``."""
    return torch.arange(0, count * step, step, device=device)


def gather_runs(flat: Tensor, runs: Runs, channels_first: bool) -> Tensor:
    """Columns ``[N, C, S]`` of a contiguous ``[N, C, P]``, where ``P`` is a multiple of the runs' length.

    Args:
        flat: The tensor.
        runs: The columns to gather.
        channels_first: Whether channels shall be outermost in memory, not examples.

    Example:
        >>> gather_runs(torch.arange(6.0).view(1, 1, 6), Runs(torch.tensor([[2, 0]]), 2), channels_first=True)
        tensor([[[4., 5., 0., 1.]]])
    """
    batch, channels, size = flat.shape
    per_row, device = size // runs.length, flat.device
    here = steps(batch, channels * per_row, device).unsqueeze(1) + runs.numbers
    channel = steps(channels, per_row, device).unsqueeze(1)
    index = channel.unsqueeze(2) + here if channels_first else channel + here.unsqueeze(1)
    kept = flat.view(-1, runs.length).index_select(0, index.flatten())
    return kept.view(channels, batch, -1).transpose(0, 1) if channels_first else kept.view(batch, channels, -1)


def flat_rows(runs: Runs, batch: int, size: int) -> Tensor:
    """Rows of ``[N·P, C]`` at some positions of each example, flattened."""
    return (runs.positions + steps(batch, size, runs.numbers.device).unsqueeze(1)).flatten()
