"""Separable spatial sampling: rows times columns."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..tn import ConvSpec, IndexPattern, ResidueClass
from .base import Estimator
from .description import Description
from .draw import Draw
from .positions import add_weight_vjp, by_rows, gather_rows, grid_positions, input_vjp, shares

Coordinates = tuple[tuple[int, ...], ...]


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

    def sketch(self, input: Tensor, spec: ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries of the input, one tensor ``[N, S, C]`` per position class."""
        held = []
        for residue, chosen, _ in self._input_parts(spec, draw):
            positions = grid_positions(residue.inputs, spec.input_size, input.device)
            local = _flat(chosen, tuple(map(len, residue.inputs)), input.device)
            held.append(gather_rows(input, positions[local]))
        return tuple(held)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet."""
        result = output_grad.new_zeros(spec.weight_shape)
        if len(held) > 1:
            output_grad = by_rows(output_grad)
        for rows, (residue, chosen, weight) in zip(held, self._input_parts(spec, draw), strict=True):
            local = _flat(chosen, tuple(map(len, residue.inputs)), output_grad.device)
            add_weight_vjp(result, rows, local, output_grad, spec, residue, weight)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land."""
        counts = grid_counts(spec.output_size, self.keep)
        axes = [
            self._choose(size, m, draw.child(j), spec.dims)
            for j, (size, m) in enumerate(zip(spec.output_size, counts, strict=True))
        ]
        chosen, scale = tuple(axis for axis, _ in axes), prod(weight for _, weight in axes)
        local = _flat(chosen, spec.output_size, output_grad.device)
        if not local.numel():
            return output_grad.new_zeros(spec.input_shape)
        return input_vjp(gather_rows(output_grad, local), local, weight * scale, spec)

    def _describe(self, spec: ConvSpec, dtype: torch.dtype) -> Description:
        per_kernel = spec.batch_size * spec.out_channels * spec.in_channels // spec.groups
        held, met = 0.0, 0.0
        for residue, counts in _plan(self.keep, spec.patterns):
            rows = self.keep * residue.size if self.bernoulli else prod(counts)
            held += rows * spec.batch_size * spec.in_channels * dtype.itemsize
            met += rows * prod(map(len, residue.kernels))
        size = prod(spec.output_size)
        outputs = self.keep * size if self.bernoulli else prod(grid_counts(spec.output_size, self.keep))
        return Description(
            round(held),
            round(met * per_kernel),
            round(outputs * prod(spec.kernel_size) * per_kernel),
            None,
            "(1/p^(1/d) - 1) per axis of the contributions summed over the others (Bernoulli), less if fixed-size",
        )

    def _input_parts(self, spec: ConvSpec, draw: Draw) -> list[tuple[ResidueClass, Coordinates, float]]:
        """Per class with anything kept of it: the coordinates kept of each axis, and their weight."""
        parts = []
        for residue, counts in _plan(self.keep, spec.patterns):
            axes = [
                self._choose(len(inputs), m, draw.child(j, inputs.start), spec.dims)
                for j, (inputs, m) in enumerate(zip(residue.inputs, counts, strict=True))
            ]
            if all(axis for axis, _ in axes):
                parts.append((residue, tuple(axis for axis, _ in axes), prod(weight for _, weight in axes)))
        return parts

    def _choose(self, size: int, count: int, draw: Draw, axes: int) -> tuple[tuple[int, ...], float]:
        """Kept coordinates of one of several axes and their weight; drawn on the host, where sizes must be known."""
        if not self.bernoulli:
            return tuple(sorted(draw.permutation(size)[:count].tolist())), size / count
        rate = self.keep ** (1 / axes)
        chosen = (torch.rand(size, generator=draw.generator()) < rate).nonzero().flatten().tolist()
        return tuple(chosen), 1 / rate


@lru_cache(maxsize=512)
def _plan(keep: float, patterns: tuple[IndexPattern, ...]) -> tuple[tuple[ResidueClass, tuple[int, ...]], ...]:
    """Classes of input positions with the number of coordinates kept per axis."""
    classes = tn.residue_classes(patterns)
    axes = [sorted({residue.inputs[j] for residue in classes}, key=lambda r: r.start) for j in range(len(patterns))]
    counts = grid_counts(tuple(sum(map(len, axis)) for axis in axes), keep)
    if any(count < len(axis) for count, axis in zip(counts, axes, strict=True)):
        whole = tn.whole_class(patterns)
        return ((whole, grid_counts(tuple(map(len, whole.inputs)), keep)),)
    split = [
        dict(zip(axis, shares(tuple(map(len, axis)), m), strict=True)) for axis, m in zip(axes, counts, strict=True)
    ]
    return tuple((residue, tuple(split[j][r] for j, r in enumerate(residue.inputs))) for residue in classes)


def _flat(chosen: Coordinates, sizes: tuple[int, ...], device: torch.device) -> Tensor:
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
