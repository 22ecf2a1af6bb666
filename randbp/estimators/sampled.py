"""Estimators made of parts: what is sampled, how it is drawn, and what is kept exactly beside the sample."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.layer_specs import Side
from ..tn import LayerSpec
from .base import Estimator
from .controls import Control
from .description import Description
from .positions import UsedPositions
from .samplers import Places, Sampler, Uniform
from .units import POSITIONS, Kept, Unit


@dataclass(frozen=True)
class Sampled(Estimator):
    """Keep a random part of a tensor: ``X ≈ L + Σ_{s∈S} w_s (X - L)_s`` with ``L`` kept exactly.

    Every VJP is linear in what it multiplies, so it stays unbiased where ``w_s`` is one over the probability that the
    place ``s`` is kept. A weight VJP samples the input, an input VJP the output gradient.

    A subclass names the parts; all else follows from them, its description included.

    Attributes:
        unit: The places: ``POSITIONS``, ``ROWS``, ``EXAMPLES`` or ``CHANNELS`` of :mod:`.units`.

    Example:
        >>> from randbp import tn
        >>> from randbp.estimators.units import EXAMPLES
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
        """What is kept exactly: nothing, unless a subclass says so.

        Args:
            shape: Of the tensor, ``[N, C, *P]``, used positions only.
            budget: Entries that may be kept in total.
        """
        return None

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
        return plan.pack(plan.sampled(input, draw)) if plan.places.size else ()

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The weight VJP of what was kept of the input."""
        output_grad, spec = self.unit.seen(output_grad, spec)
        plan = plan_of(self, spec, "input", held[0].dtype if held else output_grad.dtype)
        if not plan.places.size:
            return output_grad.new_zeros(spec.weight_shape)
        return plan.unit.weight_vjp(plan.unpack(held, draw, output_grad.device), output_grad, plan)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The input VJP of what is kept of the output gradient."""
        plan = plan_of(self, spec, "output", output_grad.dtype)
        return plan.unit.input_vjp(plan.sampled(output_grad, draw, weight), weight, plan)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        seen = self.unit.seen(torch.empty(spec.input_shape, device="meta"), spec)[1]
        plans = plan_of(self, seen, "input", dtype), plan_of(self, spec, "output", dtype)
        work = [round(plan.unit.multiply_adds(plan)) if plan.places.size else 0 for plan in plans]
        return Description(
            plans[0].held_bytes,
            work[0],
            work[1] if "input_vjp" in self.serves else None,
            self._relative_variance(plans[0]),
            self._variance(plans[0]),
            self.unbiased,
        )

    def _relative_variance(self, plan: "Plan") -> float | None:
        """Relative variance of the weight VJP where it is the same whatever the data."""
        return None

    def _variance(self, plan: "Plan") -> str:
        """Formula of the variance."""
        return "(1/p - 1) Σ_s ‖(X - L)_s V_s - mean‖², V_s the output gradients that place s meets"


@dataclass(frozen=True)
class Slot:
    """One of the tensors that are held: its name, number of entries (the mean of a random one) and type."""

    name: str
    entries: float
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """What an estimator keeps of one side of a layer, and how it is held.

    Attributes:
        spec: The layer, as the estimator sees it.
        side: Whose places are sampled.
        unit: What the places are.
        sampler: Chooses among them.
        places: All places.
        share: Share of the places that is kept, the mean if it is random.
        used: The positions that are looked at; ``None`` for all.
        control: What is kept exactly.
        slots: What is held of the input.
    """

    spec: LayerSpec
    side: Side
    unit: Unit
    sampler: Sampler
    places: Places
    share: float
    used: UsedPositions | None
    control: Control | None
    slots: tuple[Slot, ...]

    @property
    def count(self) -> float:
        """Places kept of each sum, the mean if their number is random."""
        return self.share * self.places.size

    @property
    def channels(self) -> int:
        """Channels of a group."""
        return (self.spec.in_channels if self.side == "input" else self.spec.out_channels) // self.spec.groups

    @property
    def used_shape(self) -> tuple[int, ...]:
        """Sizes of the positions that are looked at."""
        sizes = self.spec.input_size if self.side == "input" else self.spec.output_size
        return sizes if self.used is None else self.used.shape

    @property
    def held_bytes(self) -> int:
        """Bytes held, the expectation if the number is random."""
        return round(sum(slot.entries * slot.dtype.itemsize for slot in self.slots))

    def sampled(self, tensor: Tensor, draw: Draw, weight: Tensor | None = None) -> Kept:
        """Sample ``[N, C, *P]``; a weight that it will be multiplied with may matter for the choice."""
        if self.used is not None:
            tensor = self.used.take(tensor)
        means = None if self.control is None else self.control.means(tensor)
        norms = self.unit.norms(tensor, means, weight, self) if self.sampler.by_norm else None
        where, weights = self.sampler.sample(self.places, norms, draw, tensor.device)
        entries = self.unit.gather(tensor, where, self)
        if means is not None:
            entries = self.unit.less_means(entries, means, where, self)
        if isinstance(weights, Tensor):
            weights = self.unit.align(weights.to(entries.dtype), entries)
        entries *= weights
        if means is not None and self.sampler.unbiased:
            means = means - self.unit.sample_means(Kept(entries, where), tensor.shape, self)
        return Kept(entries, where, means)

    def pack(self, kept: Kept) -> tuple[Tensor, ...]:
        """The tensors that are held, in the order of the slots."""
        named: dict[str, Any] = kept._asdict()
        return tuple(named[slot.name].to(slot.dtype) for slot in self.slots)

    def unpack(self, held: tuple[Tensor, ...], draw: Draw, device: torch.device) -> Kept:
        """Undo :meth:`pack`; places that were not stored are drawn again."""
        named = {slot.name: tensor for slot, tensor in zip(self.slots, held, strict=True)}
        where = named.get("where")
        where = self.sampler.sample(self.places, None, draw, device)[0] if where is None else where.long()
        return Kept(named["entries"], where, named.get("means"))


@lru_cache(maxsize=1024)
def plan_of(estimator: Sampled, spec: LayerSpec, side: Side, dtype: torch.dtype) -> Plan:
    """The plan of an estimator for one side of a layer."""
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
    return Plan(spec, side, unit, sampler, fixed, share, used, control, tuple(slots) if places.size else ())


def index_dtype(size: int) -> torch.dtype:
    """The smallest integers that number ``size`` entries.

    Example:
        >>> index_dtype(1000), index_dtype(100_000)
        (torch.int16, torch.int32)
    """
    return torch.int16 if size <= 1 << 15 else torch.int32
