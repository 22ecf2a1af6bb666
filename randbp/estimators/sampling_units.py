"""Units of sampling: legs of a layer's input or output gradient whose entries are kept or dropped together."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .. import tn
from ..kernels.depthwise import depthwise_weight_vjp
from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import Side, role
from ..tn import LayerSpec, LinearSpec, PositionClass
from ..tn.execute.kept_positions import (
    input_vjp_of_class,
    input_vjp_of_mean,
    weight_vjp_of_class,
    weight_vjp_of_mean,
)
from ..tn.execute.segments import Segments, flat_spatial
from .chunks import chunks
from .controls import CellMeans, cell_of, cell_sizes, spread
from .planned import planned_input_vjp, planned_weight_vjp
from .positions import UsedPositions, examples_as_positions, is_narrow, used_positions
from .sample_plan import Kept, Plan
from .samplers import Places, Sampler


class Unit(ABC):
    """A kind of places, and the VJPs of what is kept at some of them."""

    stores_index_within = False  # whether stored indices count among the bytes that the keep rate allows

    def seen(self, tensor: Tensor, spec: LayerSpec) -> tuple[Tensor, LayerSpec]:
        """A tensor and its layer as the unit sees them."""
        return tensor, spec

    def used(self, spec: LayerSpec, side: Side) -> UsedPositions | None:
        """The positions that are looked at, or ``None`` if all are."""
        return None

    @abstractmethod
    def places(self, spec: LayerSpec, side: Side, keep: float, sampler: Sampler) -> tuple[Places, int]:
        """The places of one side of a layer, and the number of entries of each."""

    @abstractmethod
    def gather(self, tensor: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """The entries of ``[N, C, *P]`` at some places."""

    @abstractmethod
    def weight_vjp(self, kept: Kept, output_grad: Tensor, plan: Plan) -> Tensor:
        """The weight VJP of what is kept of the input."""

    @abstractmethod
    def input_vjp(self, kept: Kept, weight: Tensor, plan: Plan) -> Tensor:
        """The input VJP of what is kept of the output gradient."""

    def norms(self, tensor: Tensor, means: Tensor | None, weight: Tensor | None, plan: Plan) -> Tensor:
        """Norms of the terms that the places stand for, ``[B, U]``."""
        raise NotImplementedError(f"{type(self).__name__} knows no norms")

    def less_means(self, entries: Tensor, means: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """Kept entries less the control variate, in place."""
        raise NotImplementedError

    def sample_means(self, kept: Kept, shape: torch.Size, plan: Plan) -> Tensor:
        """The control variate's numbers of the kept, weighted deviations, which are zero before sampling."""
        raise NotImplementedError

    def align(self, weights: Tensor, entries: Tensor) -> Tensor:
        """Weights of places ``[B, S]`` in a shape that multiplies their entries."""
        return weights.unsqueeze(1)

    def multiply_adds(self, plan: Plan) -> float:
        """Multiply-adds of a VJP: those of the exact one, as dropped entries are multiplied as zeros."""
        return plan.spec.multiply_adds


@dataclass(frozen=True)
class PositionUnit(Unit):
    """Positions, all channels of each: of every example for itself, or (example, position) pairs of the whole batch.

    Where the keep rate leaves not one position of each example, they are pairs in any case. Kept positions are
    multiplied one by one where that is simple; other VJPs are exact ones of the tensor that is restored from them.
    """

    per_example: bool = True
    stores_index_within = True

    def seen(self, tensor: Tensor, spec: LayerSpec) -> tuple[Tensor, LayerSpec]:
        """Examples as positions of a linear layer on vectors."""
        return examples_as_positions(tensor, spec)

    def used(self, spec: LayerSpec, side: Side) -> UsedPositions | None:
        """Only what the other side uses."""
        return used_positions(spec, side)

    def places(self, spec: LayerSpec, side: Side, keep: float, sampler: Sampler) -> tuple[Places, int]:
        """Used positions."""
        shape, width = used_positions(spec, side).shape, spec.in_channels if side == "input" else spec.out_channels
        if self.per_example and keep * prod(shape) >= 1:
            return Places(spec.batch_size, shape, keep), width
        return Places(1, (spec.batch_size, *shape), keep), width

    def gather(self, tensor: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """``[N, C, S]``, or ``[1, C, S]`` of pairs."""
        flat = flat_spatial(tensor)
        if self._by_example(plan):
            return flat.gather(2, where.unsqueeze(1).expand(*flat.shape[:2], -1))
        return flat.transpose(0, 1)[:, where[0] // flat.shape[2], where[0] % flat.shape[2]].unsqueeze(0)

    def norms(self, tensor: Tensor, means: Tensor | None, weight: Tensor | None, plan: Plan) -> Tensor:
        """Norms over channels, of deviations if there are means."""
        flat, dtype = flat_spatial(tensor), torch.promote_types(tensor.dtype, torch.float32)
        found = flat.new_empty(flat.shape[0], flat.shape[2], dtype=dtype)
        for part, some in self._parts(plan, flat.shape[2]):
            rows = flat[part, :, some]
            if means is not None:
                rows = rows - self._spread(means[part], some, plan)
            found[part, some] = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
        return found.view(plan.places.batch, -1)

    def less_means(self, entries: Tensor, means: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """Kept entries less the means of their cells."""
        assert isinstance(plan.control, CellMeans)
        by_cell = means.unflatten(1, (-1, plan.control.cells))
        return entries.sub_(self.gather(by_cell, self._cells(where, plan), plan))

    def sample_means(self, kept: Kept, shape: torch.Size, plan: Plan) -> Tensor:
        """Means per cell of a tensor that is zero where nothing was kept."""
        assert isinstance(plan.control, CellMeans)
        cells, count = self._cells(kept.where, plan), plan.control.cells
        sizes = cell_sizes(plan.control, cells.device).to(kept.entries.dtype)
        scaled = kept.entries / sizes[cells % count].unsqueeze(1)
        if self._by_example(plan):
            found = scaled.new_zeros(*shape[:2], count).scatter_add_(2, cells.unsqueeze(1).expand_as(scaled), scaled)
        else:
            by_channel = scaled.new_zeros(shape[1], shape[0] * count).index_add_(1, cells[0], scaled[0])
            found = by_channel.unflatten(1, (shape[0], count)).transpose(0, 1)
        return found.flatten(1)

    def _cells(self, where: Tensor, plan: Plan) -> Tensor:
        """The cell of each place, of pairs numbered through the batch."""
        assert isinstance(plan.control, CellMeans)
        cells = cell_of(plan.control, where.device)
        if self._by_example(plan):
            return cells[where]
        return where // len(cells) * plan.control.cells + cells[where % len(cells)]

    def weight_vjp(self, kept: Kept, output_grad: Tensor, plan: Plan) -> Tensor:
        """The exact weight VJP of the restored input, a part at a time."""
        spec, result = plan.spec, output_grad.new_zeros(plan.spec.weight_shape)
        if self._by_example(plan) and serves_depthwise(plan, output_grad):
            return self._depthwise(kept, output_grad, plan)
        if kept.where.numel() and (positions := self._multiplied(plan)):
            entries, where = kept.entries.to(output_grad.dtype), Segments(kept.where)
            grad = weight_vjp_of_class(entries, where, output_grad, positions, positions.is_pointwise, spec)
            if kept.means is not None:
                grad = grad + weight_vjp_of_mean(kept.means.to(output_grad.dtype), output_grad, spec)
            return from_groups(grad, spec).contiguous()
        assert plan.used is not None
        for part, some in self._parts(plan, plan.used.size):
            flat = self._restored(kept, part, some, plan).to(output_grad.dtype)
            if isinstance(spec, LinearSpec):
                result += planned_weight_vjp(flat, output_grad[part, :, some], spec)
            else:
                result += planned_weight_vjp(plan.used.put_back(flat), output_grad[part], spec)
        return result

    def input_vjp(self, kept: Kept, weight: Tensor, plan: Plan) -> Tensor:
        """The exact input VJP of the restored output gradient."""
        assert plan.used is not None
        if kept.where.numel() and (positions := self._multiplied(plan)):
            matrices = by_group(weight, plan.spec)
            rows = input_vjp_of_class(kept.entries, kept.where, matrices, positions, plan.spec)
            result = rows.transpose(1, 2).reshape(plan.spec.input_shape).contiguous()
            return result if kept.means is None else result.add_(input_vjp_of_mean(kept.means, weight, plan.spec))
        flat = self._restored(kept, slice(0, plan.spec.batch_size), slice(0, plan.used.size), plan)
        return planned_input_vjp(plan.used.put_back(flat), weight, plan.spec)

    def _parts(self, plan: Plan, size: int) -> list[tuple[slice, slice]]:
        """Slices of the examples, each with all positions; a single sequence is cut into slices of positions."""
        if plan.spec.batch_size == 1 and isinstance(plan.spec, LinearSpec):
            return [(slice(0, 1), some) for some in chunks(size, entries=plan.spec.in_channels)]
        return [
            (part, slice(0, size)) for part in chunks(plan.spec.batch_size, entries=prod(plan.spec.input_shape[1:]))
        ]

    def _spread(self, means: Tensor, some: slice, plan: Plan) -> Tensor:
        """The control variate of some examples at some positions."""
        assert isinstance(plan.control, CellMeans)
        if some.stop - some.start == prod(plan.control.sizes):
            return spread(plan.control, means)
        return means.unflatten(1, (-1, plan.control.cells)).index_select(2, cell_of(plan.control, means.device)[some])

    def _restored(self, kept: Kept, part: slice, some: slice, plan: Plan) -> Tensor:
        """The unbiased estimate ``[n, C, s]`` of some examples and positions: what is kept, and means elsewhere."""
        examples, size = part.stop - part.start, some.stop - some.start
        if kept.means is None:
            flat = kept.entries.new_zeros(examples, kept.entries.shape[1], size)
        else:
            flat = self._spread(kept.means[part], some, plan)
            view = kept.means.shape[1] == flat.shape[1]  # of one mean
            flat = flat.clone(memory_format=torch.contiguous_format) if view else flat.contiguous()
        if self._by_example(plan) and plan.spec.batch_size > 1:
            entries, where = kept.entries[part], kept.where[part] if len(kept.where) > 1 else kept.where
            return flat.scatter_add_(2, where.unsqueeze(1).expand_as(entries), entries)
        # Pairs are numbered through the batch; those outside add zeros somewhere.
        where = kept.where[0] - (part.start * size + some.start)
        inside = (where >= 0) & (where < examples * size)
        by_channel = flat.transpose(0, 1).flatten(1)
        by_channel = by_channel.index_add(1, where.clamp(0, examples * size - 1), kept.entries[0] * inside)
        return by_channel.unflatten(1, (examples, size)).transpose(0, 1)

    def _depthwise(self, kept: Kept, output_grad: Tensor, plan: Plan) -> Tensor:
        """The weight VJP by a fused kernel, which treats one dimension as two and restores no more than a plane."""
        spec, names = plan.spec, {"kernel_size": 1, "input_size": 1, "stride": 1, "padding": 0, "dilation": 1}
        geometry = [
            [none] * (2 - spec.dims) + [getattr(pattern, name) for pattern in spec.patterns]
            for name, none in names.items()
        ]
        middle = kept.entries.new_zeros(kept.entries.shape[:2]) if kept.means is None else kept.means
        grad = output_grad.unsqueeze(2) if spec.dims == 1 else output_grad
        return depthwise_weight_vjp(kept.entries, kept.where, middle, grad, *geometry).view(spec.weight_shape)

    def multiply_adds(self, plan: Plan) -> float:
        """In proportion to the kept positions where these are multiplied one by one."""
        if not self._multiplied(plan):
            return super().multiply_adds(plan)
        rows = plan.places.batch * (plan.share * plan.places.size + (plan.control is not None))
        return rows * prod(plan.spec.weight_shape)

    def _multiplied(self, plan: Plan) -> PositionClass | None:
        """The class of positions that are multiplied one by one, where that takes less time than a restored tensor.

        That is where all are of one class and wide, and the control variate is one mean or none.
        """
        if not self._by_example(plan) or getattr(plan.control, "cells", 1) > 1 or is_narrow(plan.spec):
            return None
        first = tn.position_classes(plan.spec, plan.side)[0]  # alone if it meets the whole kernel
        return first if tuple(map(len, first.kernels)) == plan.spec.kernel_size else None

    def _by_example(self, plan: Plan) -> bool:
        return plan.places.batch == plan.spec.batch_size


class ExampleUnit(Unit):
    """Whole examples: the weight VJP is that of a smaller batch. The input VJP does not sum over them."""

    def places(self, spec: LayerSpec, side: Side, keep: float, sampler: Sampler) -> tuple[Places, int]:
        """The batch."""
        return Places(1, (spec.batch_size,), keep), prod(spec.input_shape[1:])

    def gather(self, tensor: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """``[S, C, *I]``."""
        return tensor.index_select(0, where[0])

    def align(self, weights: Tensor, entries: Tensor) -> Tensor:
        """One weight for each example."""
        return weights.view(-1, *[1] * (entries.dim() - 1))

    def less_means(self, entries: Tensor, means: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """Kept examples less the mean one."""
        return entries.sub_(means)

    def sample_means(self, kept: Kept, shape: torch.Size, plan: Plan) -> Tensor:
        """The sum of the kept, weighted examples over the size of the batch."""
        return kept.entries.sum(0, keepdim=True) / shape[0]

    def weight_vjp(self, kept: Kept, output_grad: Tensor, plan: Plan) -> Tensor:
        """The exact one of the kept examples, plus that of the mean example."""
        if not kept.where.numel():
            return output_grad.new_zeros(plan.spec.weight_shape)
        result = planned_weight_vjp(kept.entries, output_grad.index_select(0, kept.where[0]), plan.spec)
        if kept.means is None:
            return result
        return result.add_(planned_weight_vjp(kept.means, output_grad.sum(0, keepdim=True), plan.spec))

    def input_vjp(self, kept: Kept, weight: Tensor, plan: Plan) -> Tensor:
        """Not an estimate: an example that is dropped would be cut off from every layer below."""
        raise NotImplementedError("examples are not summed in an input VJP")

    def multiply_adds(self, plan: Plan) -> float:
        """In proportion to the examples, the mean one included."""
        kept = plan.share * plan.spec.batch_size + (plan.control is not None)
        return kept * plan.spec.multiply_adds / max(1, plan.spec.batch_size)


def serves_depthwise(plan: Plan, output_grad: Tensor) -> bool:
    """Whether a fused kernel serves the layer: a depthwise convolution of one or two dimensions, all of it used."""
    spec, control = plan.spec, plan.control
    if depthwise_weight_vjp.backend(output_grad.device.type) == "reference" or not 1 <= spec.dims <= 2:
        return False
    every, one = plan.used is not None and plan.used.every, not isinstance(control, CellMeans) or control.cells == 1
    return every and one and spec.groups == spec.in_channels > 1 and role(spec, "input") == "i"


POSITIONS = PositionUnit()
"""Positions, of each example for itself."""
ROWS = PositionUnit(per_example=False)
"""(Example, position) pairs of the whole batch."""
EXAMPLES = ExampleUnit()
"""Examples."""
