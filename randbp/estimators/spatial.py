"""Spatial positions drawn without replacement, with the spatial mean kept exactly."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..tn import ConvSpec, IndexPattern
from .base import Estimator, kept
from .coarse import CoarseGrid, coarse_multiply_adds
from .description import Description
from .draw import Draw
from .positions import (
    PositionClass,
    cached_tables,
    flat_kernels,
    input_classes,
    output_class,
    used_input_class,
)
from .rows import (
    add_weight_vjp,
    flat_spatial,
    gather_rows,
    input_vjp_rows,
    ones_on_inputs,
    ones_on_outputs,
    rows_with_blank,
)


@dataclass(frozen=True)
class Spatial(Estimator):
    """Keep a fixed number of spatial positions, drawn without replacement.

    For the weight VJP, input positions ``i ∈ S`` are kept with weight ``I/|S|``; for the input VJP, output positions
    ``o ∈ S``. With ``center=True`` only the deviation from the per-example, per-channel spatial mean is sampled and
    the mean's own VJP, ``Π·1`` contracted with the other factor, is added exactly (a control variate):

    ``V_W ≈ Σ_n m[n c] (Σ_i Π) V_Y + I/|S| Σ_n Σ_{i∈S_n} (X[n c i] - m[n c]) Π V_Y``

    The variance of sampling without replacement is ``(1/p - 1)·I/(I-1)`` times the sum over examples of the spatial
    variance of each position's contribution (W. G. Cochran, Sampling Techniques, 1977, ch. 2 and 5). The examples of
    a batch keep successive stretches of one random permutation, so that together they cover the positions evenly.

    Only positions that some output uses are counted and sampled. The mean counts as one of the ``⌊p·I⌋`` kept
    entries; where fewer than two are left nothing is centred. Where ``p·I < 1`` the weight VJP keeps one position of
    ``⌊p·I·N⌋`` examples, drawn without replacement.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``; the share of the layer input that is held for backward.
        per_example: Whether each example keeps positions of its own; otherwise all share one set.
        center: Whether to keep the spatial mean exactly.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Spatial(keep=0.25)
        Spatial(keep=0.25, per_example=True, center=True)
    """

    per_example: bool = True
    center: bool = True

    def sketch(self, input: Tensor, spec: ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries of the input, one tensor ``[N, S, C]`` per position class, and its mean ``[N, C]`` if any."""
        plan = self._plan(spec)
        if plan.examples < spec.batch_size:
            input = input.index_select(0, _examples(plan, spec, draw, input.device))
        mean = flat_spatial(input).mean(2) if plan.centred else None
        held = []
        for number, (grid, count) in enumerate(plan.parts):
            positions, _ = cached_tables(grid, spec.patterns, input.device)
            local = self._sample(draw.child(number), grid.size, count, plan.examples, input.device)
            rows = gather_rows(input, positions[local])
            held.append(rows if mean is None else rows.sub_(mean.unsqueeze(1)))
        return tuple(held) if mean is None else (*held, mean)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet, plus the exact VJP of the mean."""
        plan, groups, channels = self._plan(spec), spec.groups, spec.in_channels // spec.groups
        if plan.examples < spec.batch_size:
            output_grad = output_grad.index_select(0, _examples(plan, spec, draw, output_grad.device))
        result = output_grad.new_zeros(groups, spec.out_channels // groups, channels, prod(spec.kernel_size))
        output_rows = rows_with_blank(output_grad)
        for number, (grid, count) in enumerate(plan.parts):
            _, table = cached_tables(grid, spec.patterns, output_grad.device)
            local = self._sample(draw.child(number), grid.size, count, plan.examples, output_grad.device)
            weight = grid.size / count * spec.batch_size / plan.examples
            add_weight_vjp(result, held[number], output_rows, table, local, flat_kernels(grid, spec.patterns), weight)
        if plan.centred:
            sums = ones_on_inputs(output_grad.flatten(0, 1), spec).reshape(spec.batch_size, groups, -1)
            mean = held[-1].unflatten(1, (groups, channels))
            product = torch.bmm(sums.permute(1, 2, 0), mean.transpose(0, 1))  # [G, D / G · K, C / G]
            result += product.unflatten(1, (-1, result.shape[3])).transpose(2, 3)
        return result.reshape(spec.weight_shape)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land, plus the exact VJP of the mean."""
        grid = output_class(spec.patterns)
        budget = kept(grid.size, self.keep)
        centred = self.center and 1 < budget < grid.size
        count = budget - centred
        positions, table = cached_tables(grid, spec.patterns, output_grad.device)
        local = self._sample(draw, grid.size, count, spec.batch_size, output_grad.device)
        rows = gather_rows(output_grad, positions[local])
        if centred:
            mean = flat_spatial(output_grad).mean(2)
            rows = rows.sub_(mean.unsqueeze(1))
        scaled = weight * (grid.size / count)
        result = input_vjp_rows(rows, scaled, table, local, flat_kernels(grid, spec.patterns), spec)
        if centred:
            matrices = weight.reshape(spec.groups, spec.out_channels // spec.groups, -1)
            per_kernel = torch.bmm(mean.unflatten(1, (spec.groups, -1)).transpose(0, 1), matrices).transpose(0, 1)
            result += ones_on_outputs(per_kernel.reshape(-1, *spec.kernel_size), spec).view(spec.input_shape)
        return result

    def _describe(self, spec: ConvSpec, dtype: torch.dtype) -> Description:
        plan, output = self._plan(spec), prod(spec.output_size)
        per_example = spec.out_channels * spec.in_channels // spec.groups
        rows = plan.examples * (sum(count for _, count in plan.parts) + plan.centred)
        met = sum(count * len(flat_kernels(grid, spec.patterns)) for grid, count in plan.parts)
        budget = kept(output, self.keep)
        centred = self.center and 1 < budget < output
        met_outputs = (budget - centred) * prod(spec.kernel_size)
        weight, input_ = plan.examples * met * per_example, spec.batch_size * met_outputs * per_example
        if plan.centred:
            weight += coarse_multiply_adds(CoarseGrid(spec.input_size, max(spec.input_size)), spec, "input")
        if centred:
            input_ += coarse_multiply_adds(CoarseGrid(spec.output_size, max(spec.output_size)), spec, "output")
        mean = " - mean" if plan.centred else ""
        variance = f"(I/|S| - 1) I/(I-1) Σ_n Σ_i ‖(X{mean})_i ⊗ V_i - mean‖², V_i the output gradients position i meets"
        return Description(rows * spec.in_channels * dtype.itemsize, weight, input_, None, variance)

    def _sample(self, draw: Draw, size: int, count: int, batch: int, device: torch.device) -> Tensor:
        """Kept positions ``[N or 1, S]``: successive stretches of one permutation, or one stretch for all."""
        permutation = draw.permutation(size, device)
        if not self.per_example:
            return permutation[:count].unsqueeze(0)
        window = torch.arange(batch * count, device=device).remainder_(size)
        return permutation[window].view(batch, count)

    def _plan(self, spec: ConvSpec) -> "_Plan":
        return _plan(self.keep, self.center, spec.patterns, spec.batch_size)


@dataclass(frozen=True)
class _Plan:
    """What is kept of an input: how many positions of which classes, of how many examples, beside the mean or not."""

    parts: tuple[tuple[PositionClass, int], ...]
    examples: int
    centred: bool


@lru_cache(maxsize=512)
def _plan(keep: float, center: bool, patterns: tuple[IndexPattern, ...], batch: int) -> _Plan:
    whole = used_input_class(patterns)
    if not whole.size:  # every kernel entry lies in the padding
        return _Plan((), batch, False)
    if keep * whole.size < 1:  # not one position per example: drop examples, too
        return _Plan(((whole, 1),), kept(batch, keep * whole.size), False)
    budget = kept(whole.size, keep)
    centred = center and 1 < budget < whole.size
    classes = input_classes(patterns)
    if budget - centred < len(classes):
        classes = (whole,)
    counts = _shares([c.size for c in classes], budget - centred)
    return _Plan(tuple(zip(classes, counts, strict=True)), batch, centred)


def _examples(plan: _Plan, spec: ConvSpec, draw: Draw, device: torch.device) -> Tensor:
    """The examples kept where not even one position of each can be."""
    return draw.child(-1).permutation(spec.batch_size, device)[: plan.examples]


def _shares(sizes: list[int], total: int) -> list[int]:
    """Split ``total`` over classes in proportion to their sizes, at least one each, exactly ``total`` in all.

    Example:
        >>> _shares([6, 3, 1], 5)
        [3, 1, 1]
    """
    everything = sum(sizes)
    shares = [max(1, total * size // everything) for size in sizes]
    by_need = sorted(range(len(sizes)), key=lambda c: shares[c] - total * sizes[c] / everything)
    step = 1 if sum(shares) < total else -1
    while sum(shares) != total:
        for c in by_need if step > 0 else reversed(by_need):
            if sum(shares) != total and 1 <= shares[c] + step <= sizes[c]:
                shares[c] += step
    return shares
