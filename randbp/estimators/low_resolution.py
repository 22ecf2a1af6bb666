"""Spatial positions drawn without replacement, with block means kept exactly."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.layer_specs import Side
from ..tn import LayerSpec
from .base import Estimator, kept
from .coarse import (
    CoarseGrid,
    affordable_grid,
    coarse_input_vjp,
    coarse_multiply_adds,
    coarse_weight_vjp,
    subtract_sample_means,
)
from .description import Description
from .kept_vjps import KeptRows, add_weight_vjp, input_vjp
from .positions import (
    Part,
    at_positions,
    examples_as_positions,
    gather_rows,
    products,
    sampled_spec,
    side_size,
    split,
    used_size,
    uses_every_position,
    windows,
)
from .runs import Runs
from .spatial import Spatial


@dataclass(frozen=True)
class LowResolution(Estimator):
    """Keep the low-resolution part of the input exactly, and sample positions of the remainder.

    With ``L`` the input whose entries are replaced by the mean of their ``block × block`` cell,

    ``V_W ≈ Σ L Π V_Y + I/|S| Σ_n Σ_{i∈S_n} (X - L)[n c i] Π V_Y``

    The first term is exact and cheap: box sums of the output gradient, then ``1/block²`` of the exact VJP's
    multiply-adds. :class:`Spatial` is the case of one cell; as there, the mean of a cell's kept deviations is taken
    from ``L``, which centres the other factor in each cell as well. The means take bytes that samples could have, which
    pays for smooth inputs (images, early layers) and large keep rates: the variance is :class:`Spatial`'s with
    deviations from cells in place of those from one mean, and fewer samples.

    The kept entries, means included, are at most ``p`` of the input; cells are doubled until the means take at most
    half of that. Where fewer than two positions are left, this is ``Spatial(keep, center=False)``.

    Source: a regression estimator of survey sampling (W. G. Cochran, Sampling Techniques, 1977, chapter 7).

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        block: Positions per cell and dimension, at least 2.

    Raises:
        ValueError: If ``keep`` or ``block`` is out of range.

    Example:
        >>> LowResolution(keep=0.25)
        LowResolution(keep=0.25, block=4)
    """

    block: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 2:
            raise ValueError(f"LowResolution: block={self.block!r}, expected an integer >= 2")

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries less their cell's mean, ``[N, S, C]`` per position class, and the means ``[N, C·cells]``."""
        seen, positioned = examples_as_positions(input, spec)
        plan = _plan(self.keep, self.block, positioned, "input")
        if plan is None:
            return self._raw.sketch(input, spec, draw)
        means = plan.coarse.means(seen)
        kept = list(_deviations(seen, means, plan, positioned, "input", draw))
        if uses_every_position(positioned):
            for positions, rows, local, weight in kept:
                where = at_positions(positions, local, positioned, "input").positions.flatten()
                example = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
                subtract_sample_means(means, weight * rows.flatten(0, 1), example, where, plan.coarse)
        return (*(each.rows for each in kept), means.flatten(1))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply kept rows with the output rows that they meet, and add the exact VJP of the means."""
        seen, positioned = examples_as_positions(output_grad, spec)
        plan = _plan(self.keep, self.block, positioned, "input")
        if plan is None:
            return self._raw.weight_vjp(held, output_grad, spec, draw)
        means = held[-1].unflatten(1, (spec.in_channels, -1))
        result = coarse_weight_vjp(means, seen, plan.coarse, positioned)
        kept = []
        for number, (positions, count) in enumerate(plan.parts):
            local = windows(draw.child(number), positions.size, count, positioned.batch_size, seen.device)
            kept.append(KeptRows(positions, held[number], local, positions.size / count))
        add_weight_vjp(result, kept, seen, positioned)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Kept output rows less their cell's mean times the kernel, plus the exact VJP of the means."""
        plan = _plan(self.keep, self.block, spec, "output")
        if plan is None:
            return self._raw.input_vjp(output_grad, weight, spec, draw)
        means = plan.coarse.means(output_grad)
        result = input_vjp(_deviations(output_grad, means, plan, spec, "output", draw), weight, spec)
        return result.add_(coarse_input_vjp(means, weight, plan.coarse, spec))

    @property
    def _raw(self) -> Spatial:
        return Spatial(self.keep, center=False)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        raw, seen = self._raw.describe(spec, dtype), sampled_spec(spec)
        held, weight, input_ = raw.held_bytes, raw.weight_multiply_adds, raw.input_multiply_adds
        per_kernel = spec.out_channels * spec.in_channels // spec.groups
        if plan := _plan(self.keep, self.block, seen, "input"):
            rows = sum(count for _, count in plan.parts) + plan.coarse.cells
            held = seen.batch_size * spec.in_channels * rows * dtype.itemsize
            weight = products(plan.parts) * seen.batch_size * per_kernel
            weight += coarse_multiply_adds(plan.coarse, seen, "input")
        if plan := _plan(self.keep, self.block, spec, "output"):
            input_ = products(plan.parts) * spec.batch_size * per_kernel
            input_ += coarse_multiply_adds(plan.coarse, spec, "output")
        variance = (
            "(I/|S| - 1) I/(I-1) Σ_n Σ_i ‖(X-L)_i ⊗ (V - L_V)_i - mean‖², V_i the output gradients position i meets"
        )
        return Description(held, weight, input_, None, variance)


@dataclass(frozen=True)
class _Plan:
    """The number of positions sampled from each class, and the cells whose means are kept."""

    parts: tuple[Part, ...]
    coarse: CoarseGrid


@lru_cache(maxsize=512)
def _plan(keep: float, block: int, spec: LayerSpec, side: Side) -> _Plan | None:
    size = used_size(spec, side)
    budget = kept(size, keep)
    coarse = affordable_grid(side_size(spec, side), block, budget / 2)
    if coarse is None or not size:
        return None
    return _Plan(split(spec, side, budget - coarse.cells), coarse)


def _deviations(
    tensor: Tensor, means: Tensor, plan: _Plan, spec: LayerSpec, side: Side, draw: Draw
) -> Iterator[KeptRows]:
    """Per class: kept rows less the mean of their cell, which positions of the class they are, and their weight."""
    cells = plan.coarse.cell_of(tensor.device)
    for number, (positions, count) in enumerate(plan.parts):
        local = windows(draw.child(number), positions.size, count, spec.batch_size, tensor.device)
        where = at_positions(positions, local, spec, side)
        rows = gather_rows(tensor, where).sub_(gather_rows(means, Runs(cells[where.positions])))
        yield KeptRows(positions, rows, local, positions.size / count)
