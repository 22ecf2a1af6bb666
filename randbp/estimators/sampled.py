"""Estimators made of parts: what is sampled, how it is drawn, and what is kept exactly beside the sample."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.layer_specs import Side
from ..tn import LayerSpec
from .base import Estimator
from .controls import Control, half_in_cells
from .description import Description
from .sample_plan import Kept, Plan, Slot, index_dtype
from .samplers import Places, Sampler, Uniform
from .sampling_units import POSITIONS, Unit


@dataclass(frozen=True)
class Sampled(Estimator):
    """Keep a random part of a tensor: ``X ≈ L + Σ_{s∈S} w_s (X - L)_s`` with ``L`` kept exactly.

    Every VJP is linear in what it multiplies, so it stays unbiased where ``w_s`` is one over the probability that the
    place ``s`` is kept. A weight VJP samples the input, an input VJP the output gradient.

    A subclass names the parts; all else follows from them, its description included.

    Attributes:
        unit: The places: ``POSITIONS``, ``ROWS`` or ``EXAMPLES`` of :mod:`.sampling_units`, or ``CHANNELS``.

    Example:
        >>> from randbp import tn
        >>> from randbp.estimators.sampling_units import EXAMPLES
        >>> class Half(Sampled):
        ...     unit = EXAMPLES
        >>> Half(keep=0.5).describe(tn.ConvSpec((4, 3, 5), out_channels=2, kernel_size=3)).held_bytes
        120
    """

    unit: ClassVar[Unit] = POSITIONS

    @property
    def sampler(self) -> Sampler:
        """A fixed number, drawn without replacement."""
        return Uniform()

    def control(self, shape: tuple[int, ...], budget: float) -> Control | None:
        """What is kept exactly of ``[N, C, *P]`` (used positions only), if ``budget`` entries may be kept in total.

        A subclass with a field ``center`` asks for means of cells of that size, for at most half of the budget.
        """
        return half_in_cells(shape, budget, getattr(self, "center", False))

    @property
    def unbiased(self) -> bool:
        """Whether the sampler is."""
        return self.sampler.unbiased

    @property
    def fixed_size(self) -> bool:
        """Whether the sampler keeps a fixed number."""
        return self.sampler.fixed_size

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """What is kept, in the plan's order: weighted entries, stored places, and the control variate's numbers."""
        input, spec = self.unit.seen(input, spec)
        plan = plan_of(self, spec, "input", input.dtype)
        return plan.pack(self._sampled(plan, input, draw)) if plan.places.size else ()

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The weight VJP of what was kept of the input."""
        output_grad, spec = self.unit.seen(output_grad, spec)
        plan = plan_of(self, spec, "input", held[0].dtype if held else output_grad.dtype)
        if not plan.places.size:
            return output_grad.new_zeros(spec.weight_shape)
        named = plan.unpack(held)
        if "where" in named:
            where = named["where"].long()
        else:  # drawn again
            where, _ = self.sampler.sample(plan.places, None, draw, output_grad.device)
        return self.unit.weight_vjp(Kept(named["entries"], where, named.get("means")), output_grad, plan)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The input VJP of what is kept of the output gradient."""
        plan = plan_of(self, spec, "output", output_grad.dtype)
        return self.unit.input_vjp(self._sampled(plan, output_grad, draw, weight), weight, plan)

    def _sampled(self, plan: Plan, tensor: Tensor, draw: Draw, weight: Tensor | None = None) -> Kept:
        """Sample ``[N, C, *P]``; a weight that it will be multiplied with may matter for the choice."""
        unit, tensor = self.unit, tensor if plan.used is None else plan.used.take(tensor)
        means = None if plan.control is None else plan.control.means(tensor)
        norms = unit.norms(tensor, means, weight, plan) if self.sampler.by_norm else None
        where, weights = self.sampler.sample(plan.places, norms, draw, tensor.device)
        entries = unit.gather(tensor, where, plan)
        if means is not None:
            entries = unit.less_means(entries, means, where, plan)
        entries *= unit.align(weights.to(entries.dtype), entries) if isinstance(weights, Tensor) else weights
        if means is not None and self.sampler.unbiased:
            means = means - unit.sample_means(Kept(entries, where), tensor.shape, plan)
        return Kept(entries, where, means)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        seen = self.unit.seen(torch.empty(spec.input_shape, device="meta"), spec)[1]
        plans = plan_of(self, seen, "input", dtype), plan_of(self, spec, "output", dtype)
        work = [round(self.unit.multiply_adds(plan)) if plan.places.size else 0 for plan in plans]
        return Description(
            plans[0].held_bytes,
            work[0],
            work[1] if "input_vjp" in self.serves else None,
            self._relative_variance(plans[0]),
            self._variance(plans[0]),
            self.unbiased,
        )

    def _relative_variance(self, plan: Plan) -> float | None:
        """Relative variance of the weight VJP where it is the same whatever the data."""
        return None

    def _variance(self, plan: Plan) -> str:
        """Formula of the variance."""
        return "(1/p - 1) Σ_s ‖(X - L)_s V_s - mean‖², V_s the output gradients that place s meets"


@lru_cache(maxsize=1024)
def plan_of(estimator: Sampled, spec: LayerSpec, side: Side, dtype: torch.dtype) -> Plan:
    """The plan of an estimator for one side of a layer, whose tensors are of a type."""
    unit, sampler = estimator.unit, estimator.sampler
    used = unit.used(spec, side)
    places, width = unit.places(spec, side, estimator.keep, sampler)
    shape = spec.input_shape if side == "input" else spec.output_shape
    looked_at = (*shape[:2], *(shape[2:] if used is None else used.shape))
    count, control, slots = sampler.count(places) if places.size else 0, None, list[Slot]()
    if places.size:
        control = estimator.control(looked_at, estimator.keep * places.size * places.batch * width)
    if control is not None:
        count -= control.entries(looked_at) // (places.batch * width)
    if sampler.by_norm:
        where = index_dtype(places.size)
        if unit.stores_index_within and side == "input":  # those of the output side are never held
            row = width * dtype.itemsize
            count = max(1, int(count * row / (row + where.itemsize) + 1e-9)) if count else 0
        slots.append(Slot("where", places.batch * count, where))
    if control is not None:
        slots.append(Slot("means", control.entries(looked_at), dtype))
    slots.insert(0, Slot("entries", places.batch * count * width, dtype))
    share = count / places.size if places.size else 0.0
    fixed = Places(places.batch, places.shape, places.keep, int(count))
    return Plan(spec, side, fixed, share, used, control, tuple(slots) if places.size else ())
