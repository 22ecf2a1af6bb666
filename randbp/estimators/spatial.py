"""Spatial positions drawn without replacement, with the spatial mean kept exactly."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..tn import ConvSpec, IndexPattern, ResidueClass
from .base import Estimator, kept
from .description import Description
from .draw import Draw
from .positions import add_weight_vjp, by_rows, flat_spatial, gather_rows, grid_positions, input_vjp, shares


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
        for number, (residue, count) in enumerate(plan.parts):
            positions = grid_positions(residue.inputs, spec.input_size, input.device)
            local = self._sample(draw.child(number), residue.size, count, plan.examples, input.device)
            rows = gather_rows(input, positions[local])
            held.append(rows if mean is None else rows.sub_(mean.unsqueeze(1)))
        return tuple(held) if mean is None else (*held, mean)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept rows times the output rows they meet, plus the exact VJP of the mean."""
        plan, device = self._plan(spec), output_grad.device
        scale = spec.batch_size / plan.examples
        if plan.examples < spec.batch_size:
            output_grad = output_grad.index_select(0, _examples(plan, spec, draw, device))
            spec = replace_batch(spec, plan.examples)
        if plan.centred:
            result = tn.constant_input_weight_vjp(spec).contract(mean=held[-1], output_grad=output_grad)
        else:
            result = output_grad.new_zeros(spec.weight_shape)
        if len(plan.parts) > 1:
            output_grad = by_rows(output_grad)
        for number, (residue, count) in enumerate(plan.parts):
            local = self._sample(draw.child(number), residue.size, count, plan.examples, device)
            add_weight_vjp(result, held[number], local, output_grad, spec, residue, scale * residue.size / count)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Kept output rows times the kernel, added where they land, plus the exact VJP of the mean."""
        size = prod(spec.output_size)
        budget = kept(size, self.keep)
        centred = self.center and 1 < budget < size
        count = budget - centred
        local = self._sample(draw, size, count, spec.batch_size, output_grad.device)
        rows = gather_rows(output_grad, local)
        if not centred:
            return input_vjp(rows, local, weight * (size / count), spec)
        mean = flat_spatial(output_grad).mean(2)
        result = input_vjp(rows.sub_(mean.unsqueeze(1)), local, weight * (size / count), spec)
        return result.add_(tn.constant_output_grad_input_vjp(spec).contract(mean=mean, weight=weight))

    def _describe(self, spec: ConvSpec, dtype: torch.dtype) -> Description:
        plan, output = self._plan(spec), prod(spec.output_size)
        per_example = spec.out_channels * spec.in_channels // spec.groups
        rows = plan.examples * (sum(count for _, count in plan.parts) + plan.centred)
        met = sum(count * prod(map(len, residue.kernels)) for residue, count in plan.parts)
        budget = kept(output, self.keep)
        centred = self.center and 1 < budget < output
        met_outputs = (budget - centred) * prod(spec.kernel_size)
        weight, input_ = plan.examples * met * per_example, spec.batch_size * met_outputs * per_example
        if plan.centred:
            weight += tn.constant_input_weight_vjp(spec).plan().multiplications
        if centred:
            input_ += tn.constant_output_grad_input_vjp(spec).plan().multiplications
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

    parts: tuple[tuple[ResidueClass, int], ...]
    examples: int
    centred: bool


@lru_cache(maxsize=512)
def _plan(keep: float, center: bool, patterns: tuple[IndexPattern, ...], batch: int) -> _Plan:
    classes = tn.residue_classes(patterns)
    size = sum(residue.size for residue in classes)
    if not size:  # every kernel entry lies in the padding
        return _Plan((), batch, False)
    whole = classes[0] if len(classes) == 1 else tn.whole_class(patterns)
    if keep * size < 1:  # not one position per example: drop examples, too
        return _Plan(((whole, 1),), kept(batch, keep * size), False)
    budget = kept(size, keep)
    centred = center and 1 < budget < size
    if budget - centred < len(classes):
        classes = (whole,)
    counts = shares(tuple(residue.size for residue in classes), budget - centred)
    return _Plan(tuple(zip(classes, counts, strict=True)), batch, centred)


def _examples(plan: _Plan, spec: ConvSpec, draw: Draw, device: torch.device) -> Tensor:
    """The examples kept where not even one position of each can be."""
    return draw.child(-1).permutation(spec.batch_size, device)[: plan.examples]


def replace_batch(spec: ConvSpec, batch: int) -> ConvSpec:
    """The same convolution of another number of examples."""
    shape = (batch, *spec.input_shape[1:])
    return ConvSpec(shape, spec.out_channels, spec.kernel_size, spec.stride, spec.padding, spec.dilation, spec.groups)
