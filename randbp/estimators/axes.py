"""Separable spatial sampling: rows times columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..draws.draw import Draw
from ..layers.layer_specs import Side
from ..tn import LayerSpec, PositionClass
from .base import Estimator
from .description import Description
from .kept_vjps import KeptRows, add_weight_vjp, input_vjp
from .positions import (
    at_positions,
    examples_as_positions,
    gather_rows,
    sampled_spec,
    shares,
    side_size,
)
from .runs import Runs


@dataclass(frozen=True)
class Axes(Estimator):
    """Keep a grid of rows and columns (and planes …) that the whole batch shares: the estimator of the reference curve.

    Each of ``d`` spatial axes keeps the share ``p^(1/d)`` of its coordinates: input coordinates for a weight VJP,
    output coordinates for an input VJP.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]`` of all axes together.
        bernoulli: If false, a fixed number per axis is drawn without replacement, as many as ``p`` allows. If true,
            each coordinate is kept on its own with probability ``p^(1/d)`` and weight ``1/p``; the number kept, and
            with it the memory, is then random, and a draw may keep nothing.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Axes(keep=0.25)
        Axes(keep=0.25, bernoulli=False)
    """

    bernoulli: bool = False

    @property
    def fixed_size(self) -> bool:
        """True unless draws are Bernoulli."""
        return not self.bernoulli

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries of the input, one tensor ``[N, S, C]`` per position class."""
        input, spec = examples_as_positions(input, spec)
        return tuple(each.rows for each in self._kept(input, spec, "input", draw))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply the kept rows with the output rows that they meet."""
        output_grad, spec = examples_as_positions(output_grad, spec)
        result = output_grad.new_zeros(spec.weight_shape)
        sample = self._sample(spec, "input", draw, output_grad.device)
        kept = [KeptRows(each, rows, local, weight) for rows, (each, local, weight) in zip(held, sample, strict=True)]
        add_weight_vjp(result, kept, output_grad, spec)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply the kept output rows with the kernel, and add each product to the inputs it belongs to."""
        return input_vjp(self._kept(output_grad, spec, "output", draw), weight, spec)

    def _kept(self, tensor: Tensor, spec: LayerSpec, side: Side, draw: Draw) -> Iterator[KeptRows]:
        """For each class of which something is kept: its rows, their positions in the class, and their weight."""
        for positions, local, weight in self._sample(spec, side, draw, tensor.device):
            yield KeptRows(positions, gather_rows(tensor, at_positions(positions, local, spec, side)), local, weight)

    def _sample(
        self, spec: LayerSpec, side: Side, draw: Draw, device: torch.device
    ) -> Iterator[tuple[PositionClass, Runs, float]]:
        """For each class of which something is kept: positions in the class, for all examples, and their weight."""
        for positions, counts in _plan(self.keep, spec, side):
            axes = [
                self._choose(len(coordinates), m, draw.child(j, coordinates.start), spec.dims)
                for j, (coordinates, m) in enumerate(zip(positions.positions, counts, strict=True))
            ]
            if all(axis for axis, _ in axes):
                sizes = tuple(map(len, positions.positions))
                local = _flat([axis for axis, _ in axes], sizes, device)
                yield positions, Runs(local), prod(weight for _, weight in axes)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        held, weight = self._rows(sampled_spec(spec), "input")
        _, input_ = self._rows(spec, "output")
        per_kernel = spec.out_channels * spec.in_channels // spec.groups
        return Description(
            round(held * spec.in_channels * dtype.itemsize),
            round(weight * per_kernel),
            round(input_ * per_kernel),
            None,
            "(1/p^(1/d) - 1) per axis of the contributions summed over the others (Bernoulli), less if fixed-size",
        )

    def _rows(self, spec: LayerSpec, side: Side) -> tuple[float, float]:
        """Number of rows kept of the whole batch (its mean if random), and of their products with kernel entries."""
        rows = met = 0.0
        for positions, counts in _plan(self.keep, spec, side):
            count = spec.batch_size * (self.keep * positions.size if self.bernoulli else prod(counts))
            rows, met = rows + count, met + count * prod(map(len, positions.kernels))
        return rows, met

    def _choose(self, size: int, count: int, draw: Draw, axes: int) -> tuple[tuple[int, ...], float]:
        """Draw kept coordinates of one of several axes and their weight, on the host, where sizes must be known."""
        if not self.bernoulli:
            return tuple(sorted(draw.permutation(size)[:count].tolist())), size / count
        rate = self.keep ** (1 / axes)
        chosen = (torch.rand(size, generator=draw.generator()) < rate).nonzero().flatten().tolist()
        return tuple(chosen), 1 / rate


@lru_cache(maxsize=512)
def _plan(keep: float, spec: LayerSpec, side: Side) -> tuple[tuple[PositionClass, tuple[int, ...]], ...]:
    """Classes of positions with the number of coordinates kept per axis."""
    classes = tn.position_classes(spec, side)
    axes = [sorted({each.positions[j] for each in classes}, key=lambda r: r.start) for j in range(spec.dims)]
    counts = grid_counts(tuple(sum(map(len, axis)) for axis in axes), keep)
    if any(count < len(axis) for count, axis in zip(counts, axes, strict=True)):
        return ((tn.whole_class(spec, side), grid_counts(side_size(spec, side), keep)),)
    split = [
        dict(zip(axis, shares(tuple(map(len, axis)), m), strict=True)) for axis, m in zip(axes, counts, strict=True)
    ]
    return tuple((each, tuple(split[j][r] for j, r in enumerate(each.positions))) for each in classes)


def _flat(chosen: list[tuple[int, ...]], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Row-major flat positions ``[1, S]`` of the grid of kept coordinates."""
    flat = torch.zeros(1, dtype=torch.long)
    for coordinates, size in zip(chosen, sizes, strict=True):
        flat = (flat[:, None] * size + torch.tensor(coordinates, dtype=torch.long)).flatten()
    return flat.to(device, non_blocking=True).unsqueeze(0)


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
