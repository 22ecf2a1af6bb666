"""Separable spatial sampling: rows times columns."""

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..tn import ConvSpec
from .base import Estimator
from .description import Description
from .draw import Draw
from .positions import (
    PositionClass,
    flat_kernels,
    flat_positions,
    output_class,
    partner_table,
    restricted_classes,
    used_inputs,
)
from .rows import add_weight_vjp, gather_rows, input_vjp_rows, rows_with_blank

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
        grids, _ = self._input_grids(spec, draw)
        return tuple(
            gather_rows(input, flat_positions(grid, spec.patterns, input.device).unsqueeze(0)) for grid in grids
        )

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet."""
        grids, weight = self._input_grids(spec, draw)
        groups, device = spec.groups, output_grad.device
        inner, outer = spec.in_channels // groups, spec.out_channels // groups
        result = output_grad.new_zeros(groups, outer, inner, prod(spec.kernel_size))
        output_rows = rows_with_blank(output_grad)
        for grid, rows in zip(grids, held, strict=True):
            table = partner_table(grid, spec.patterns, device)
            local = torch.arange(grid.size, device=device).unsqueeze(0)
            add_weight_vjp(result, rows, output_rows, table, local, flat_kernels(grid, spec.patterns), weight)
        return result.reshape(spec.weight_shape)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land."""
        coordinates, scale = self._coordinates(tuple(tuple(range(size)) for size in spec.output_size), draw)
        grid = replace(output_class(spec.patterns), positions=coordinates)
        device, kernels = output_grad.device, flat_kernels(grid, spec.patterns)
        rows = gather_rows(output_grad, flat_positions(grid, spec.patterns, device).unsqueeze(0))
        table = partner_table(grid, spec.patterns, device)
        local = torch.arange(grid.size, device=device).unsqueeze(0)
        return input_vjp_rows(rows, weight * scale, table, local, kernels, spec)

    def _describe(self, spec: ConvSpec, dtype: torch.dtype) -> Description:
        axes = tuple(map(used_inputs, spec.patterns))
        per_kernel = spec.batch_size * spec.out_channels * spec.in_channels // spec.groups
        shares = []
        for sizes in (tuple(map(len, axes)), spec.output_size):
            share = self.keep if self.bernoulli else prod(grid_counts(sizes, self.keep)) / max(1, prod(sizes))
            shares.append(share)
        # Every used input position meets, on average over draws, the same number of kernel entries as without a draw.
        met = sum(
            grid.size * len(flat_kernels(grid, spec.patterns)) for grid in restricted_classes(spec.patterns, axes)
        )
        held = shares[0] * prod(map(len, axes)) * spec.batch_size * spec.in_channels * dtype.itemsize
        return Description(
            round(held),
            round(shares[0] * met * per_kernel),
            round(shares[1] * prod(spec.output_size) * prod(spec.kernel_size) * per_kernel),
            None,
            "(1/p^(1/d) - 1) per axis of the contributions summed over the others (Bernoulli), less if fixed-size",
        )

    def _input_grids(self, spec: ConvSpec, draw: Draw) -> tuple[tuple[PositionClass, ...], float]:
        coordinates, weight = self._coordinates(tuple(map(used_inputs, spec.patterns)), draw)
        return restricted_classes(spec.patterns, coordinates), weight

    def _coordinates(self, axes: Coordinates, draw: Draw) -> tuple[Coordinates, float]:
        """Kept coordinates per axis and their common weight; drawn on the host, so that sizes are known there."""
        rate = self.keep ** (1 / max(1, len(axes)))
        if self.bernoulli:
            uniform = [torch.rand(len(axis), generator=draw.child(j).generator()) for j, axis in enumerate(axes)]
            chosen = [(u < rate).nonzero().flatten().tolist() for u in uniform]
            return _pick(axes, chosen), 1 / rate ** len(axes)
        sizes = tuple(map(len, axes))
        counts = grid_counts(sizes, self.keep)
        chosen = [
            sorted(draw.child(j).permutation(n)[:m].tolist())
            for j, (n, m) in enumerate(zip(sizes, counts, strict=True))
        ]
        return _pick(axes, chosen), prod(sizes) / max(1, prod(counts))


def _pick(axes: Coordinates, chosen: list[list[int]]) -> Coordinates:
    return tuple(tuple(axis[c] for c in picked) for axis, picked in zip(axes, chosen, strict=True))


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
