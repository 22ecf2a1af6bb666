"""Spatial positions drawn without replacement, after removing the mean and a few directions in channel space."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..draws.draw import Draw, windows
from ..kernels.gather import gather_planes
from ..layers.grouped_weights import by_group
from ..layers.layer_specs import Side, replace_channels
from ..tn import LayerSpec, PositionClass
from ..tn.execute.kept_positions import (
    input_vjp_of_class,
    input_vjp_of_mean,
    pointwise_weight_vjp_with_mean,
    weight_vjp_of_class,
    weight_vjp_of_mean,
)
from ..tn.execute.segments import Segments, gather, reads_planes
from .base import kept
from .description import Description
from .low_rank import LowRank, affordable_rank, low_rank, price
from .positions import UsedPositions, is_narrow, sampled_spec, segment_length, split, used_positions
from .sample_plan import Kept
from .sampled import Sampled, plan_of
from .samplers import Sampler, Uniform


@dataclass(frozen=True)
class Spatial(Sampled):
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
    piece. The length of a run is the largest of 7 to 16 that divides the rows and loses at most a tenth of the kept
    entries. If there is no such length, and in linear and transposed layers, positions are single. With runs, the
    formula above applies to runs and their contributions. In networks trained for a while on images, the error is 1.0
    to 1.5 times that of single positions, most at large keep rates; if both the input and the output gradient are
    smooth, as below bilinear upsampling, it can be 1.8 times as large. Channels-last layers gain no time by runs.

    In layers with much arithmetic, ``center=True`` also keeps the part that a few directions ``u_r`` in channel space
    span:

    ``X[n c i] - m[n c] ≈ Σ_r u[c r] z[n r i]``

    All coefficients ``z`` are held, and only the remainder is sampled. The weight VJP of this part is exact; it is that
    of a layer with one input channel per direction. The part takes three eighths of the kept entries. Its directions
    are found by two steps of subspace iteration on some of the columns
    (:func:`~randbp.estimators.low_rank.leading_directions`). This is done only where it takes little time: in layers of
    at least 2^30 multiply-adds, and 200 for each input entry. Channels of a trained network are so similar that it
    divides the variance by 2 to 15; if they are not (noise, a new network with batch normalisation), it multiplies the
    variance by 5/3 at small keep rates, and by 2 at ``keep=1/2``.

    Layers with fewer than eight input channels per group (the first of a network, depthwise ones) gain no time by a
    sample: their weight VJP is the exact one of the restored input.

    Only positions that some output uses are counted and sampled. Everything that is held counts among the ``⌊p·I⌋``
    kept entries; if fewer than two are left, nothing is centred. If ``p·I < 1``, ``⌊p·I·N⌋`` positions of the whole
    batch are kept. In a linear layer on vectors ``[N, C]``, examples take the place of positions: the weight VJP
    samples them, with their mean as the control variate; the input VJP is exact.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``; the share of the layer input that is held for backward.
        per_example: Whether each example keeps its own positions; otherwise all examples share one set.
        center: Whether to keep the spatial mean exactly, and the low-rank part.
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

    @property
    def sampler(self) -> Sampler:
        """A fixed number of positions, of each example or of all."""
        return Uniform(shared=not self.per_example)

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """Kept entries of the input, its mean ``[N, C]`` if any, then directions and coefficients if any."""
        plan = class_plan(self, spec, "input")
        if not plan.parts:
            return super().sketch(input, spec, draw)
        input, where = plan.seen(input), plan.drawn(draw, input.device)
        held, mean = plan.gathered(input, where)
        if mean is None:
            return (held,)
        if not plan.rank:
            return held, mean.sub_(plan.means(held))
        part = low_rank(input, mean, spec.groups, plan.rank, draw.child(-2))
        part.subtract_from(held, plan.flat(where).positions)
        return held, mean.sub_(plan.means(held)), part.directions, part.coefficients

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply kept entries with the outputs that they meet; add the exact VJPs of the mean and low-rank part."""
        plan = class_plan(self, spec, "input")
        if not plan.parts:
            return super().weight_vjp(held, output_grad, spec, draw)
        spec, where, mean = plan.spec, plan.drawn(draw, output_grad.device), held[1] if plan.centred else None
        output_grad = output_grad.permute(2, 1, 0) if plan.vectors else output_grad
        if plan.restored:
            kept = Kept(held[0] * plan.parts[0].weight, where[0].positions, mean)
            return self.unit.weight_vjp(kept, output_grad, plan_of(self, spec, "input", held[0].dtype))
        if plan.pointwise and not plan.rank and spec.groups == 1 and reads_planes(output_grad):
            grad = pointwise_weight_vjp_with_mean(held[0], where[0], plan.parts[0].weight, mean, output_grad)
            return grad.view(spec.weight_shape)
        if mean is not None:
            grouped = weight_vjp_of_mean(mean, output_grad, spec)
        else:
            grouped = by_group(output_grad.new_zeros(spec.weight_shape), spec)
        if plan.rank:
            LowRank(spec.groups, *held[2:]).add_weight_vjp(grouped, output_grad, spec)
        if len(where) > 1 and where[0].length == 1:  # what several classes read row by row is transposed once
            output_grad = output_grad.movedim(1, -1).contiguous().movedim(-1, 1)
        for part, some, local in zip(plan.parts, held[0].split(plan.counts, 2), where, strict=True):
            grad = weight_vjp_of_class(some, local, output_grad, part.positions, part.pointwise, spec)
            grouped[part.entries].add_(grad, alpha=part.weight)
        return (grouped.transpose(1, 2) if plan.transposed else grouped).flatten(0, 1).contiguous()

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Multiply kept output rows with the kernel, scatter them to the inputs, and add the exact VJP of the mean."""
        plan, grouped = class_plan(self, spec, "output"), by_group(weight, spec)
        where = plan.drawn(draw, output_grad.device)
        held, mean = plan.gathered(plan.seen(output_grad), where)
        result = None if mean is None else input_vjp_of_mean(mean, weight, spec)
        for part, some, local in zip(plan.parts, held.split(plan.counts, 2), where, strict=True):
            matrices = grouped[part.entries] * part.weight
            rows = input_vjp_of_class(some, local.numbers, matrices, part.positions, spec)
            planes = rows.transpose(1, 2).view(spec.input_shape)
            result = planes.contiguous() if result is None else result.add_(planes)
        return weight.new_zeros(spec.input_shape) if result is None else result

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        plan, plain = class_plan(self, spec, "input"), super()._describe(spec, dtype)
        held, work = plain.held_bytes, plain.weight_multiply_adds
        if plan.parts:
            held, work = plan.entries * dtype.itemsize, work if plan.restored else plan.multiply_adds
        x, v = ("(X - means - low-rank part)_i", "(V_i - mean)") if plan.centred else ("X_i", "V_i")
        lengths = sorted({part.length for part in plan.parts}) or [1]
        each, size, per_run = ("i", "I", "") if lengths[-1] == 1 else ("r", "R", "Σ_{i∈r} ")
        runs = "" if lengths[-1] == 1 else f"r the R runs of {' or '.join(map(str, lengths))} neighbours, "
        variance = (
            f"(I/|S| - 1) {size}/({size}-1) Σ_n Σ_{each} ‖{per_run}{x} ⊗ {v} - mean‖², "
            f"{runs}V_i the output gradients position i meets"
        )
        return Description(held, work, class_plan(self, spec, "output").multiply_adds, None, variance)


@dataclass(frozen=True)
class ClassPart:
    """A class of positions, how many of each example are kept, and in segments of which length.

    ``total`` and ``kept`` are numbers of segments, ``entries`` the class's part of ``[G, D / G, C / G, *K]``.
    """

    positions: PositionClass
    count: int
    length: int
    total: int
    kept: int
    weight: float
    pointwise: bool
    entries: tuple[slice, ...]

    @classmethod
    def of(cls, positions: PositionClass, count: int, length: int = 1) -> "ClassPart":
        """The part of whole segments."""
        kept, kernels = count // length, (slice(each.start, each.stop, each.step) for each in positions.kernels)
        everything, size = (slice(None), slice(None), slice(None)), positions.size
        number = kept * length
        pointwise = positions.is_pointwise
        return cls(positions, number, length, size // length, kept, size / number, pointwise, (*everything, *kernels))


@dataclass(frozen=True)
class ClassPlan:
    """What is kept of each class of positions on one side of a layer."""

    spec: LayerSpec  # the layer, after examples_as_positions
    vectors: bool  # whether that exchanges examples and positions
    used: UsedPositions  # the positions that are looked at
    draws: int  # number of examples with positions of their own; 1 if all share them
    parts: tuple[ClassPart, ...] = ()  # what is kept of each class
    centred: bool = False  # whether the mean is kept
    rank: int = 0  # directions of each group in the low-rank part
    restored: bool = False  # whether the VJP is that of a restored tensor
    pointwise: bool = False  # whether there is one class, each position of which meets the output of the same number
    alone: bool = False  # whether there is one class, of all positions that are looked at
    counts: tuple[int, ...] = ()  # positions kept of each class
    transposed: bool = False  # whether the weight is that of a transposed convolution

    @property
    def entries(self) -> int:
        """Number of entries that are held of a layer's input."""
        rows = self.spec.batch_size * (sum(self.counts) + self.centred) * self.spec.in_channels
        return rows + round(self.rank * price(self.spec) * self.spec.batch_size * self.spec.in_channels)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the VJP; box sums are not counted."""
        spec, weights = self.spec, prod(self.spec.weight_shape)
        met = sum(part.count * prod(map(len, part.positions.kernels)) for part in self.parts)
        total = spec.batch_size * (met * spec.out_channels * spec.in_channels // spec.groups + self.centred * weights)
        if self.rank:
            total += self.rank * (prod(spec.input_shape) + weights)
            total += replace_channels(spec, spec.groups, self.rank, spec.out_channels // spec.groups).multiply_adds
        return total

    def seen(self, tensor: Tensor) -> Tensor:
        """The used positions of a tensor of the layer."""
        tensor = tensor.permute(2, 1, 0) if self.vectors else tensor
        return tensor if self.alone else self.used.take(tensor)

    def drawn(self, draw: Draw, device: torch.device) -> list[Segments]:
        """The positions of each class that are kept: stretches of one permutation."""
        found = []
        for number, part in enumerate(self.parts):
            numbers = windows(draw.child(number), part.total, part.kept, self.draws, device)
            found.append(Segments(numbers, part.length))
        return found

    def flat(self, where: list[Segments]) -> Segments:
        """The kept positions of all classes, numbered through the used ones."""
        if self.alone:
            return where[0]
        found = [torch.zeros(1, 0, dtype=torch.long)] if not where else []
        for part, local in zip(self.parts, where, strict=True):
            members = self.used.members(part.positions, local.numbers.device)
            found.append(local.positions if members is None else members[local.positions])
        return Segments(torch.cat(found, 1))

    def gathered(self, tensor: Tensor, where: list[Segments]) -> tuple[Tensor, Tensor | None]:
        """Kept deviations ``[N, C, S]`` of ``[N, C, *P]``, and its mean ``[N, C]``."""
        if (self.restored or self.pointwise) and reads_planes(tensor):
            numbers, length, what = where[0].numbers, where[0].length, "deviations" if self.centred else "entries"
            kept, means = gather_planes(tensor.flatten(2), numbers, length, "examples", what)
            return kept, means if self.centred else None
        mean = tensor.flatten(2).mean(2) if self.centred else None
        return gather(tensor, self.flat(where), mean), mean

    def means(self, held: Tensor) -> Tensor:
        """The estimated mean of deviations, which is zero before sampling: see :class:`.controls.CellMeans`."""
        if self.alone:
            return held.mean(2)
        parts = zip(self.parts, held.split(self.counts, 2), strict=True)
        return torch.stack([some.mean(2) * (part.positions.size / self.used.size) for part, some in parts]).sum(0)


@lru_cache(maxsize=512)
def class_plan(estimator: Spatial, layer: LayerSpec, side: Side) -> ClassPlan:
    """The plan of an estimator for one side of a layer."""
    inputs = side == "input"
    spec = sampled_spec(layer) if inputs else layer
    used, whole = used_positions(spec, side), tn.whole_class(spec, side)
    plan = ClassPlan(spec, spec is not layer, used, spec.batch_size if estimator.per_example else 1)
    if not used.size or (inputs and estimator.keep * used.size < 1):
        return plan  # every kernel entry lies in the padding, or no example has a position of its own
    budget, rank = kept(used.size, estimator.keep), 0
    centred = estimator.center and 1 < budget < used.size
    budget -= centred
    if inputs and is_narrow(spec):  # kernel entries need not be told apart, so all positions are one class
        everywhere = PositionClass(used.axes, whole.kernels, whole.patterns)  # type: ignore[arg-type]
        part, alone = ClassPart.of(everywhere, budget), used.every
        return replace(plan, parts=(part,), centred=centred, restored=True, alone=alone, counts=(budget,))
    if inputs and centred and used.every and (rank := affordable_rank(spec, budget)):
        budget = int(budget - rank * price(spec))
    chosen = split(spec, side, budget)
    if chosen[0][0] == whole:  # too few for the classes
        used = UsedPositions(used.sizes, tuple(map(range, used.sizes)))
    lengths = [segment_length(spec, *each) if inputs and estimator.runs else 1 for each in chosen]
    if any(length == 1 and not each.is_pointwise for (each, _), length in zip(chosen, lengths, strict=True)):
        lengths = [1] * len(lengths)  # where one class has none, segments of the others are of no use
    parts = tuple(ClassPart.of(*each, length) for each, length in zip(chosen, lengths, strict=True))
    one = len(parts) == 1
    return replace(
        plan,
        used=used,
        parts=parts,
        centred=centred,
        rank=rank,
        pointwise=one and parts[0].pointwise,
        alone=one and used.every,
        counts=tuple(part.count for part in parts),
        transposed=isinstance(spec, tn.ConvTransposeSpec),
    )
