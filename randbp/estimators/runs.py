"""Runs: kept positions that lie side by side in memory, so that each is read with its neighbours in one piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..tn import LayerSpec, LinearSpec, PositionClass

LONGEST = 16  # positions: of four bytes each, they fill a cache line
SHORTEST = 4  # below it, indices cost more than they save
LOST = 1 / 10  # of the positions that could be kept, the share that may be lost to whole runs


@lru_cache(maxsize=1024)
def run_length(spec: LayerSpec, positions: PositionClass, count: int) -> int:
    """How many neighbouring positions of a class of inputs to keep together, if so many are to be kept; 1 for none.

    That is the longest of 4 to 16 that divides the class, leaves at least two runs, and loses little of the count. In
    classes that neither are all positions nor meet one output each, nothing that is read would lie side by side.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((1, 1, 14, 14), 1, kernel_size=3, padding=1)
        >>> everywhere, = tn.position_classes(layer, "input")
        >>> [run_length(layer, everywhere, count) for count in (98, 48, 11)]
        [14, 4, 1]
    """
    if isinstance(spec, LinearSpec) or not (is_whole(positions, spec) or positions.is_pointwise):
        return 1  # channels, not positions, of a sequence lie side by side
    for length in range(min(LONGEST, count // 2), SHORTEST - 1, -1):
        if positions.size % length == 0 and count % length <= LOST * count:
            return length
    return 1


def is_whole(positions: PositionClass, spec: LayerSpec) -> bool:
    """Whether a class of inputs is all of them."""
    return positions.positions == tuple(map(range, spec.input_size))


@dataclass(frozen=True)
class Runs:
    """Positions ``[N or 1, R·L]``: the runs with certain numbers, each of ``L`` positions side by side.

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
        """Position by position."""
        if self.length == 1:
            return self.numbers
        within = steps(self.length, 1, self.numbers.device)
        return (self.numbers.unsqueeze(2) * self.length + within).flatten(1)

    @property
    def examples(self) -> int:
        """``N``, or 1 if all examples share the positions."""
        return len(self.numbers)

    @property
    def count(self) -> int:
        """Positions of each example."""
        return self.numbers.shape[1] * self.length

    def of(self, part: slice) -> "Runs":
        """Those of some examples."""
        return self if self.examples == 1 else Runs(self.numbers[part], self.length)


def joined(several: Sequence[Runs]) -> Runs:
    """All positions of several, one after the other; no longer in runs unless there is only one."""
    return several[0] if len(several) == 1 else Runs(torch.cat([each.positions for each in several], 1))


@lru_cache(maxsize=512)
def steps(count: int, step: int, device: torch.device) -> Tensor:
    """``0, step, 2 step …``: so many numbers, not to be written to."""
    return torch.arange(0, count * step, step, device=device)


def gather_runs(flat: Tensor, runs: Runs, channels_first: bool) -> Tensor:
    """Columns ``[N, C, S]`` of a contiguous ``[N, C, P]``, where ``P`` is a multiple of the runs' length.

    Args:
        flat: The tensor.
        runs: Which columns.
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
