"""Spatial positions drawn without replacement, with block means kept exactly."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..tn import ConvSpec, IndexPattern, ResidueClass
from .base import Estimator, kept
from .coarse import CoarseGrid, affordable_grid, coarse_input_vjp, coarse_multiply_adds, coarse_weight_vjp
from .description import Description
from .draw import Draw
from .positions import add_weight_vjp, by_rows, gather_rows, grid_positions, input_vjp, shares
from .spatial import Spatial


@dataclass(frozen=True)
class LowResolution(Estimator):
    """Keep the low-resolution part of the input exactly and sample positions of what is left.

    With ``L`` the input whose entries are replaced by the mean of their ``block × block`` cell,

    ``V_W ≈ Σ L Π V_Y + I/|S| Σ_n Σ_{i∈S_n} (X - L)[n c i] Π V_Y``

    The first term is exact and cheap: box sums of the output gradient, then ``1/block²`` of the exact VJP's
    multiply-adds. :class:`Spatial` is the case of one cell. The means take bytes that samples could have, which pays
    for smooth inputs (images, early layers) and large keep rates: the variance is :class:`Spatial`'s with ``X - L``
    in place of ``X`` less its mean, and fewer samples.

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

    def sketch(self, input: Tensor, spec: ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries less their cell's mean, ``[N, S, C]`` per position class, and the means ``[N, C·cells]``."""
        plan = self._input_plan(spec)
        if plan is None:
            return self._raw.sketch(input, spec, draw)
        means, held = plan.coarse.means(input), []
        cells = plan.coarse.cell_of(input.device)
        for number, (residue, count) in enumerate(plan.parts):
            positions = grid_positions(residue.inputs, spec.input_size, input.device)
            index = positions[_windows(draw.child(number), residue.size, count, spec.batch_size, input.device)]
            held.append(gather_rows(input, index).sub_(gather_rows(means, cells[index])))
        return (*held, means.flatten(1))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet, plus the exact VJP of the means."""
        plan = self._input_plan(spec)
        if plan is None:
            return self._raw.weight_vjp(held, output_grad, spec, draw)
        means = held[-1].unflatten(1, (spec.in_channels, -1))
        result = coarse_weight_vjp(means, output_grad, plan.coarse, spec).reshape(spec.weight_shape)
        if len(plan.parts) > 1:
            output_grad = by_rows(output_grad)
        for number, (residue, count) in enumerate(plan.parts):
            local = _windows(draw.child(number), residue.size, count, spec.batch_size, output_grad.device)
            add_weight_vjp(result, held[number], local, output_grad, spec, residue, residue.size / count)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows less their cell's mean times the kernel, plus the exact VJP of the means."""
        plan = self._output_plan(spec)
        if plan is None:
            return self._raw.input_vjp(output_grad, weight, spec, draw)
        count, coarse = plan
        means, size = coarse.means(output_grad), prod(spec.output_size)
        local = _windows(draw, size, count, spec.batch_size, output_grad.device)
        cells = coarse.cell_of(output_grad.device)[local]
        rows = gather_rows(output_grad, local).sub_(gather_rows(means, cells))
        result = input_vjp(rows, local, weight * (size / count), spec)
        return result.add_(coarse_input_vjp(means, weight, coarse, spec))

    @property
    def _raw(self) -> Spatial:
        return Spatial(self.keep, center=False)

    def _input_plan(self, spec: ConvSpec) -> "_Plan | None":
        return _input_plan(self.keep, self.block, spec.patterns)

    def _output_plan(self, spec: ConvSpec) -> tuple[int, CoarseGrid] | None:
        """Output positions sampled beside which cells."""
        budget = kept(prod(spec.output_size), self.keep)
        coarse = affordable_grid(spec.output_size, self.block, budget / 2)
        return None if coarse is None else (budget - coarse.cells, coarse)

    def _describe(self, spec: ConvSpec, dtype: torch.dtype) -> Description:
        raw = self._raw.describe(spec, dtype)
        held, weight, input_ = raw.held_bytes, raw.weight_multiply_adds, raw.input_multiply_adds
        per_kernel = spec.batch_size * spec.out_channels * spec.in_channels // spec.groups
        if plan := self._input_plan(spec):
            rows = sum(count for _, count in plan.parts) + plan.coarse.cells
            held = spec.batch_size * spec.in_channels * rows * dtype.itemsize
            products = sum(count * prod(map(len, residue.kernels)) for residue, count in plan.parts)
            weight = products * per_kernel + coarse_multiply_adds(plan.coarse, spec, "input")
        if beside := self._output_plan(spec):
            count, coarse = beside
            input_ = count * prod(spec.kernel_size) * per_kernel + coarse_multiply_adds(coarse, spec, "output")
        variance = "(I/|S| - 1) I/(I-1) Σ_n Σ_i ‖(X-L)_i ⊗ V_i - mean‖², V_i the output gradients position i meets"
        return Description(held, weight, input_, None, variance)


@dataclass(frozen=True)
class _Plan:
    """How many input positions of which classes are sampled beside which cells."""

    parts: tuple[tuple[ResidueClass, int], ...]
    coarse: CoarseGrid


@lru_cache(maxsize=512)
def _input_plan(keep: float, block: int, patterns: tuple[IndexPattern, ...]) -> _Plan | None:
    classes = tn.residue_classes(patterns)
    size = sum(residue.size for residue in classes)
    budget = kept(size, keep)
    coarse = affordable_grid(tuple(p.input_size for p in patterns), block, budget / 2)
    if coarse is None or not size:
        return None
    count = budget - coarse.cells
    if count < len(classes):
        classes = (tn.whole_class(patterns),)
    counts = shares(tuple(residue.size for residue in classes), count)
    return _Plan(tuple(zip(classes, counts, strict=True)), coarse)


def _windows(draw: Draw, size: int, count: int, batch: int, device: torch.device) -> Tensor:
    """Kept positions ``[N, S]``: successive stretches of one permutation, so that examples cover them evenly."""
    window = torch.arange(batch * count, device=device).remainder_(size)
    return draw.permutation(size, device)[window].view(batch, count)
