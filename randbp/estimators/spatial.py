"""Spatial positions drawn without replacement, after removing the mean and a few directions in channel space."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .. import tn
from ..draws.draw import Draw
from ..layers.layer_specs import Side, replace_batch
from ..tn import LayerSpec, PositionClass
from .base import Estimator, kept
from .description import Description
from .fused import gather_deviations, gathers, pointwise_weight_vjp
from .kept_vjps import KeptRows, add_weight_vjp, input_vjp, multiplied_by_example, products_in_runs
from .low_rank import add_low_rank_vjp
from .means import Grid, covers, example_means, less_sample_means, position_means, sampled_grid
from .positions import (
    Order,
    Part,
    at_positions,
    examples_as_positions,
    gather_classes,
    sampled_spec,
    split,
    used_size,
    uses_every_position,
    windows,
)
from .ranks import Ranks, affordable_ranks, keep_parts, kept_parts
from .rebuilt import depthwise_vjp, gather_centred, rebuilding_pays, rebuilt_weight_vjp, serves_depthwise
from .run_length import rebuilt_run_length, run_length
from .runs import Runs, joined


@dataclass(frozen=True)
class Spatial(Estimator):
    """Keep a fixed number of spatial positions, drawn without replacement.

    For the weight VJP, input positions ``i ∈ S`` are kept with weight ``I/|S|``; for the input VJP, output positions
    ``o ∈ S``. With ``center=True`` only the deviation from the per-example, per-channel spatial mean is sampled and
    the mean's own VJP, ``Π·1`` contracted with the other factor, is added exactly (a control variate):

    ``V_W ≈ Σ_n (m - r_n)[c] (Σ_i Π) V_Y + I/|S| Σ_n Σ_{i∈S_n} (X[n c i] - m[n c]) Π V_Y``

    with ``m`` the mean and ``r`` the mean of the kept deviations ``X - m``. As these add up to zero before
    sampling, ``r`` also removes the mean of ``Π V_Y`` from the second sum: both factors are centred, at no cost.

    The variance of sampling without replacement is ``(1/p - 1)·I/(I-1)`` times the sum over examples and positions of
    the squared deviation of each position's contribution from their mean (W. G. Cochran, Sampling Techniques, 1977,
    ch. 2 and 5). The examples of a batch keep disjoint stretches of one random permutation, so that together they
    cover the positions evenly.

    For the weight VJP of convolutions, positions come in runs of neighbours, which are read and multiplied in one
    piece. The run length is the largest of 4 to 16 (up to 32 in depthwise layers and with few channels) that divides
    the rows, loses at most a tenth of the kept entries, and reads few outputs twice (with kernels of 3 entries: from 7
    or 8 on). If there is no such length, and in linear and most transposed layers, positions are single. With runs, the
    formula above applies to runs and their contributions. In networks trained for a while on images, the error is 1.0
    to 1.3 times that of single positions, most at large keep rates; if both the input and the output gradient are
    smooth, as below bilinear upsampling, it can be 1.8 times as large. Channels-last layers gain no time by runs.

    In layers with much arithmetic, ``center=True`` also keeps the part that a few directions ``u_r`` in channel space
    span:

    ``X[n c i] - m[n c] ≈ Σ_r u[c r] z[n r i]``

    All coefficients ``z`` are held, and only the remainder is sampled. The weight VJP of this part is exact; it is that
    of a layer with one input channel per direction. The part takes three eighths of the kept entries. Its directions
    are found by two steps of subspace iteration on some of the columns
    (:func:`~randbp.estimators.low_rank.leading_directions`); if they are few, further coefficients are held at half the
    resolution. From 16 examples on, eight directions of the mean over examples are kept first. All this is done only
    where it takes little time: in layers of at least 2^30 multiply-adds, and 200 for each input entry. Channels of a
    trained network are so similar that this divides the variance by 2 to 15; if they are not (noise, a new network with
    batch normalisation), it multiplies the variance by 5/3 at small keep rates, and by 2 at ``keep=1/2``.

    Only positions that some output uses are counted and sampled. Everything that is held counts among the ``⌊p·I⌋``
    kept entries; if fewer than two are left, nothing is centred. If ``p·I < 1``, the weight VJP keeps one position of
    each of ``⌊p·I·N⌋`` examples, drawn without replacement. In a linear layer on vectors ``[N, C]``, examples take the
    place of positions: the weight VJP samples them, with their mean as the control variate; the input VJP is exact.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``; the share of the layer input that is held for backward.
        per_example: Whether each example keeps its own positions; otherwise all examples share one set.
        center: Whether to keep the spatial mean exactly, and the low-rank parts.
        runs: Whether positions may come in runs, which take less time and give a slightly larger error.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Spatial(keep=0.25)
        Spatial(keep=0.25, per_example=True, center=True, runs=True)
    """

    per_example: bool = True
    center: bool = True
    runs: bool = True

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries of the input, its mean ``[N, C]`` if any, then directions and coefficients if any.

        One tensor ``[N, S, C]`` per position class, or a single one ``[N, C, S]`` where the input is rebuilt from it.
        """
        input, spec = examples_as_positions(input, spec)
        plan = _plan(self, spec, "input", input.dtype)
        if plan.examples < spec.batch_size:
            input = input.index_select(0, _examples(plan, spec, draw, input.device))
        where = _where(self._drawn(plan, draw, input.device), spec, "input")
        if where and covers(plan.grid, spec.input_size) and gathers(input):
            return self._gathered(input, where, plan, spec, draw)
        mean = example_means(input, plan.grid) if plan.centred else None
        rebuilt = where and rebuilding_pays(spec, self.keep, input.dtype)
        if rebuilt:
            held = [gather_centred(input, joined(where), mean)]
        else:
            held = gather_classes(input, where, mean, _order(plan, spec))
        if mean is None:
            return tuple(held)
        parts, kept_of_parts = keep_parts(plan.ranks, input, mean, spec, draw.child(-2))
        for part in parts:
            part.subtract_from(held, where)
        if plan.grid is not None:
            sizes = [positions.size for positions, _ in plan.parts]
            kept = held[0].split([count for _, count in plan.parts], 2) if rebuilt else held
            mean = less_sample_means(mean, kept, sizes, 2 if rebuilt else 1)
        return (*held, mean, *kept_of_parts)

    def _gathered(
        self, input: Tensor, where: list[Runs], plan: "_Plan", spec: LayerSpec, draw: Draw
    ) -> tuple[Tensor, ...]:
        """:meth:`sketch` by a fused kernel, which makes the rows of all classes at once."""
        rebuilt = rebuilding_pays(spec, self.keep, input.dtype)
        sizes, counts = [positions.size for positions, _ in plan.parts], [each.count for each in where]
        order = "examples" if rebuilt else _order(plan, spec)
        kept, mean, sums = gather_deviations(input, where, sizes, order, plan.centred)
        held = (kept,) if rebuilt else kept.transpose(1, 2).split(counts, 1)
        if not plan.centred:
            return _apart(held)
        parts, kept_of_parts = keep_parts(plan.ranks, input, mean, spec, draw.child(-2))
        for part in parts:
            part.subtract_from([kept.transpose(1, 2)], [joined(where)])
        if plan.grid is not None:
            mean = less_sample_means(mean, held, sizes, 2 if rebuilt else 1) if parts else mean.sub_(sums)
        return (*_apart(held), mean, *kept_of_parts)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply kept rows with the output rows that they meet; add the exact VJPs of the mean and low-rank parts."""
        output_grad, spec = examples_as_positions(output_grad, spec)
        dtype = held[0].dtype if held else output_grad.dtype
        plan, device = _plan(self, spec, "input", dtype), output_grad.device
        scale = spec.batch_size / plan.examples
        if plan.examples < spec.batch_size:
            output_grad = output_grad.index_select(0, _examples(plan, spec, draw, device))
            spec = replace_batch(spec, plan.examples)
        drawn = list(self._drawn(plan, draw, device))
        rebuilt = drawn and rebuilding_pays(spec, self.keep, dtype)
        means = held[1 if rebuilt else len(drawn) :]
        mean = means[0] if means else None
        if rebuilt:
            where = joined(_where(drawn, spec, "input"))
            weights = [(each.local.count, scale * each.weight) for each in drawn]
            return rebuilt_weight_vjp(held[0], where, weights, mean, output_grad, spec)
        if plan.parts and serves_depthwise(spec, device):
            kept_planes = torch.cat([rows.transpose(1, 2) for rows in held[: len(drawn)]], 2)
            weights = [(each.local.count, scale * each.weight) for each in drawn]
            return depthwise_vjp(kept_planes, joined(_where(drawn, spec, "input")), weights, mean, output_grad, spec)
        if len(drawn) == 1 and prod(spec.kernel_size) == spec.groups == 1 and gathers(output_grad) and not means[1:]:
            (each,) = drawn
            by_example = multiplied_by_example(each.positions, each.local.count, spec)
            grad = pointwise_weight_vjp(held[0], each.local, scale * each.weight, mean, output_grad, by_example)
            return grad.view(spec.weight_shape)
        if mean is None:
            result = output_grad.new_zeros(spec.weight_shape)
        else:
            result = tn.constant_input_weight_vjp(spec).contract(mean=mean, output_grad=output_grad)
            if 0 in result.stride():  # one output meets all kernel entries alike
                result = result.contiguous()
        add_low_rank_vjp(result, kept_parts(plan.ranks, means[1:], spec), output_grad, spec)
        kept = [
            KeptRows(each.positions, rows, each.local, scale * each.weight)
            for rows, each in zip(held, drawn, strict=False)
        ]
        add_weight_vjp(result, kept, output_grad, spec)
        return result.contiguous()  # up to here input channels are innermost in memory, as in what was added

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply kept output rows with the kernel, scatter them to the inputs, and add the exact VJP of the mean."""
        plan = _plan(self, spec, "output", output_grad.dtype)
        mean = position_means(output_grad) if plan.centred else None
        drawn = list(self._drawn(plan, draw, output_grad.device))
        rows = gather_classes(output_grad, _where(drawn, spec, "output"), mean)
        kept = [KeptRows(each.positions, some, each.local, each.weight) for some, each in zip(rows, drawn, strict=True)]
        result = input_vjp(kept, weight, spec)
        if mean is None:
            return result
        return result.add_(tn.constant_output_grad_input_vjp(spec).contract(mean=mean, weight=weight))

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        seen, per_kernel = sampled_spec(spec), spec.out_channels * spec.in_channels // spec.groups
        plan, outputs = _plan(self, seen, "input", dtype), _plan(self, spec, "output", dtype)
        rows = plan.examples * (sum(count for _, count in plan.parts) + plan.centred)
        entries = rows * spec.in_channels + plan.ranks.entries(seen)
        weight, input_ = (p.examples * products_in_runs(p.parts, p.runs) * per_kernel for p in (plan, outputs))
        if rebuilding_pays(seen, self.keep, dtype):
            weight = replace_batch(seen, plan.examples).multiply_adds
        elif plan.centred:
            weight += tn.constant_input_weight_vjp(seen).plan().multiplications
            weight += plan.ranks.multiply_adds(seen)
        if outputs.centred:
            input_ += tn.constant_output_grad_input_vjp(spec).plan().multiplications
        x = "(X - means - low-rank parts)_i" if plan.centred else "X_i"
        v = "(V_i - mean)" if plan.grid else "V_i"
        lengths = sorted(set(plan.runs)) or [1]
        each, size, per_run = ("i", "I", "") if lengths[-1] == 1 else ("r", "R", "Σ_{i∈r} ")
        neighbours = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
        what = "" if lengths[-1] == 1 else f"r the R runs of {neighbours} neighbours, "
        variance = (
            f"(I/|S| - 1) {size}/({size}-1) Σ_n Σ_{each} ‖{per_run}{x} ⊗ {v} - mean‖², "
            f"{what}V_i the output gradients position i meets"
        )
        return Description(entries * dtype.itemsize, weight, input_, None, variance)

    def _drawn(self, plan: "_Plan", draw: Draw, device: torch.device) -> Iterator["_Drawn"]:
        """The positions of each class that are kept: stretches of one permutation, or one for all."""
        for number, ((positions, count), run) in enumerate(zip(plan.parts, plan.runs, strict=True)):
            examples = plan.examples if self.per_example else 1
            local = windows(draw.child(number), positions.size, count, examples, device, run)
            yield _Drawn(positions, local, positions.size / count)


class _Drawn(NamedTuple):
    """The kept positions of a class, and their weight."""

    positions: PositionClass
    local: Runs
    weight: float


@dataclass(frozen=True)
class _Plan:
    """The plan for one side: numbers of positions by class, number of examples, and the means that are kept.

    ``runs`` is the number of neighbouring positions that are kept together, for each class; ``grid`` is where the
    positions sampled lie, if both factors can be centred; ``ranks`` are those of the low-rank parts.
    """

    parts: tuple[Part, ...]
    runs: tuple[int, ...]
    examples: int
    centred: bool = False
    grid: Grid | None = None
    ranks: Ranks = Ranks(0)  # noqa: RUF009 -- a frozen value


@lru_cache(maxsize=512)
def _plan(estimator: Spatial, spec: LayerSpec, side: Side, dtype: torch.dtype) -> _Plan:
    size = used_size(spec, side)
    if not size:  # every kernel entry lies in the padding
        return _Plan((), (), spec.batch_size)
    if side == "input" and estimator.keep * size < 1:  # not one position per example: drop examples, too
        return _Plan(((tn.whole_class(spec, side), 1),), (1,), kept(spec.batch_size, estimator.keep * size))
    budget = kept(size, estimator.keep)
    if not estimator.center or not 1 < budget < size:
        return _Plan(*_split(estimator, spec, side, budget, dtype), spec.batch_size)
    if side == "output":
        return _Plan(*_split(estimator, spec, side, budget - 1, dtype), spec.batch_size, centred=True)
    ranks = affordable_ranks(spec, budget - 1)
    parts, runs = _split(estimator, spec, side, ranks.left, dtype)
    return _Plan(parts, runs, spec.batch_size, True, sampled_grid(parts), ranks)


def _split(
    estimator: Spatial, spec: LayerSpec, side: Side, count: int, dtype: torch.dtype
) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    """Number of positions to keep of each class, in whole runs, and the length of these."""
    in_runs = estimator.runs and side == "input"
    if in_runs and rebuilding_pays(spec, estimator.keep, dtype) and uses_every_position(spec):
        run = rebuilt_run_length(spec, count)
        if run > 1:  # kernel entries need not be told apart, so all positions are one class
            return ((tn.whole_class(spec, side), count - count % run),), (run,)
    parts = split(spec, side, count)
    runs = tuple(run_length(spec, *part) if in_runs else 1 for part in parts)
    if any(run == 1 and not positions.is_pointwise for (positions, _), run in zip(parts, runs, strict=True)):
        return parts, (1,) * len(parts)  # where one class has none, runs of the others are of no use
    whole = tuple((positions, kept - kept % run) for (positions, kept), run in zip(parts, runs, strict=True))
    return whole, runs


def _order(plan: _Plan, spec: LayerSpec) -> Order:
    """The memory order for kept rows."""
    if not plan.ranks.directions and all(multiplied_by_example(*part, spec) for part in plan.parts):
        return "examples"
    if min(plan.runs) == 1:
        return "rows"
    return "channels" if len(plan.runs) == 1 else "examples"


def _where(drawn: Iterable[_Drawn], spec: LayerSpec, side: Side) -> list[Runs]:
    """The flat positions kept of each class."""
    return [at_positions(each.positions, each.local, spec, side) for each in drawn]


def _examples(plan: _Plan, spec: LayerSpec, draw: Draw, device: torch.device) -> Tensor:
    """The examples that are kept if there is not even one position for each example."""
    return draw.child(-1).permutation(spec.batch_size, device)[: plan.examples]


def _apart(held: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy each of several tensors that share memory, since held tensors must own theirs."""
    return tuple(each.clone() for each in held) if len(held) > 1 else held
