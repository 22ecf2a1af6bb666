"""Which spatial positions a sample can keep, and which position each of them meets through a kernel entry."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Literal

import torch
from torch import Tensor

from ..tn import IndexPattern

Side = Literal["input", "output"]


@dataclass(frozen=True)
class PositionClass:
    """A grid of positions on one side of a convolution, and the grid of kernel entries that they meet.

    Args:
        side: ``"input"`` or ``"output"``.
        positions: Per dimension, the coordinates of the grid.
        kernels: Per dimension, the kernel entries that positions of the class meet.
    """

    side: Side
    positions: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return prod(map(len, self.positions))


@lru_cache(maxsize=512)
def input_classes(patterns: tuple[IndexPattern, ...]) -> tuple[PositionClass, ...]:
    """Partition the input positions that any output uses by the kernel entries they meet (one class at stride 1).

    With stride ``s`` a kernel entry meets only one residue of the input positions modulo ``s``. Sampling each class
    on its own keeps every product dense: no multiplication is spent on a pair that the pattern rules out.

    Example:
        >>> [c.positions for c in input_classes((IndexPattern(5, 2, 3, stride=2),))]
        [((0, 2, 4),), ((1, 3),)]
    """
    return restricted_classes(patterns, tuple(tuple(range(p.input_size)) for p in patterns))


def restricted_classes(
    patterns: tuple[IndexPattern, ...], kept: tuple[tuple[int, ...], ...]
) -> tuple[PositionClass, ...]:
    """The same partition of the grid of ``kept`` input coordinates (per dimension) only."""
    per_dimension = [_residues(pattern, set(kept[j])) for j, pattern in enumerate(patterns)]
    return tuple(
        PositionClass("input", tuple(positions for positions, _ in grid), tuple(kernels for _, kernels in grid))
        for grid in product(*per_dimension)
    )


def used_inputs(pattern: IndexPattern) -> tuple[int, ...]:
    """Input coordinates of one dimension that any output uses.

    Example:
        >>> used_inputs(IndexPattern(5, 3, 1, stride=2))  # a down-sampling pattern skips every second input
        (0, 2, 4)
    """
    return tuple(sorted({i for positions, _ in _residues(pattern, set(range(pattern.input_size))) for i in positions}))


def _residues(pattern: IndexPattern, kept: set[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Used and kept input coordinates with the kernel entries they meet, by residue modulo the stride."""
    inputs: dict[int, set[int]] = {}
    kernels: dict[int, set[int]] = {}
    outputs = torch.arange(pattern.output_size)
    for k in range(pattern.kernel_size):
        positions, valid = pattern.inputs_at(outputs, k)
        if met := kept.intersection(positions[valid].tolist()):
            residue = next(iter(met)) % pattern.stride
            inputs.setdefault(residue, set()).update(met)
            kernels.setdefault(residue, set()).add(k)
    return [(tuple(sorted(inputs[r])), tuple(sorted(kernels[r]))) for r in sorted(inputs)]


@lru_cache(maxsize=512)
def used_input_class(patterns: tuple[IndexPattern, ...]) -> PositionClass:
    """All used input positions and all kernel entries as one class, for samples too small to be split further."""
    return PositionClass(
        "input", tuple(map(used_inputs, patterns)), tuple(tuple(range(p.kernel_size)) for p in patterns)
    )


@lru_cache(maxsize=512)
def output_class(patterns: tuple[IndexPattern, ...]) -> PositionClass:
    """All output positions and all kernel entries as one class."""
    return PositionClass(
        "output",
        tuple(tuple(range(p.output_size)) for p in patterns),
        tuple(tuple(range(p.kernel_size)) for p in patterns),
    )


def flat_positions(grid: PositionClass, patterns: tuple[IndexPattern, ...], device: torch.device) -> Tensor:
    """Row-major flat positions of a class, ``[size]``."""
    flat = torch.zeros(1, dtype=torch.long)
    for pattern, coordinates in zip(patterns, grid.positions, strict=True):
        size = pattern.input_size if grid.side == "input" else pattern.output_size
        flat = (flat[:, None] * size + torch.tensor(coordinates, dtype=torch.long)).flatten()
    return flat.to(device, non_blocking=True)


def partner_table(grid: PositionClass, patterns: tuple[IndexPattern, ...], device: torch.device) -> Tensor:
    """Flat position on the other side that each position meets through each kernel entry, ``[kernels, size]``.

    Where there is none, the entry is the number of positions of the other side: the index of the blank row that
    :func:`randbp.estimators.rows.rows_with_blank` appends.
    """
    sizes = [p.output_size if grid.side == "input" else p.input_size for p in patterns]
    table = torch.zeros(1, 1, dtype=torch.long)
    valid = torch.ones(1, 1, dtype=torch.bool)
    for pattern, size, coordinates, kernels in zip(patterns, sizes, grid.positions, grid.kernels, strict=True):
        meet = pattern.outputs_at if grid.side == "input" else pattern.inputs_at
        here = torch.tensor(coordinates, dtype=torch.long)
        met = [meet(here, k) for k in kernels]
        partner, exists = (torch.stack(part) for part in zip(*met, strict=True))  # [K_j, size_j]
        shape = (table.shape[0] * len(kernels), table.shape[1] * len(coordinates))
        table = (table[:, None, :, None] * size + partner[None, :, None, :]).reshape(shape)
        valid = (valid[:, None, :, None] & exists[None, :, None, :]).reshape(shape)
    return torch.where(valid, table, prod(sizes)).to(device, non_blocking=True)


@lru_cache(maxsize=256)
def cached_tables(
    grid: PositionClass, patterns: tuple[IndexPattern, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """:func:`flat_positions` and :func:`partner_table`, computed once per layer geometry."""
    return flat_positions(grid, patterns, device), partner_table(grid, patterns, device)


@lru_cache(maxsize=512)
def flat_kernels(grid: PositionClass, patterns: tuple[IndexPattern, ...]) -> tuple[int, ...]:
    """Row-major flat kernel indices of a class, in the order of the rows of :func:`partner_table`."""
    flat = [0]
    for kernels, pattern in zip(grid.kernels, patterns, strict=True):
        flat = [index * pattern.kernel_size + k for index in flat for k in kernels]
    return tuple(flat)
