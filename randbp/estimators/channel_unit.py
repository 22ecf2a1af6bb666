"""Channels as a unit of sampling."""

from math import prod

import torch
from torch import Tensor

from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import Side, replace_channels
from ..tn import LayerSpec
from ..tn.execute.segments import flat_spatial
from .planned import planned_input_vjp, planned_weight_vjp
from .sample_plan import Kept, Plan
from .samplers import Bernoulli, Places, Sampler
from .sampling_units import Unit


class ChannelUnit(Unit):
    """Channels: the VJPs are those of a smaller layer.

    Each group keeps channels of its own; groups too narrow for that are kept or dropped as a whole.
    """

    def places(self, spec: LayerSpec, side: Side, keep: float, sampler: Sampler) -> tuple[Places, int]:
        """The channels of each group, or the groups."""
        inputs = side == "input"
        channels, shape = (spec.in_channels, spec.input_shape) if inputs else (spec.out_channels, spec.output_shape)
        size, entries = channels // spec.groups, shape[0] * prod(shape[2:])
        if keep * size < 1 and (spec.groups > 1 or not isinstance(sampler, Bernoulli)):
            return Places(1, (spec.groups,), keep), size * entries
        return Places(spec.groups, (size,), keep), entries

    def gather(self, tensor: Tensor, where: Tensor, plan: Plan) -> Tensor:
        """``[N, S, *P]`` with the kept channels of all groups."""
        groups, channels = self._chosen(where, plan)
        return tensor.index_select(1, _flat(groups, channels, plan.channels))

    def norms(self, tensor: Tensor, means: Tensor | None, weight: Tensor | None, plan: Plan) -> Tensor:
        """Norms over examples and positions, times those of the kernels that an input VJP multiplies them with."""
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        found = torch.linalg.vector_norm(flat_spatial(tensor), dim=(0, 2), dtype=dtype)
        if weight is not None:
            found *= torch.linalg.vector_norm(by_group(weight, plan.spec).flatten(2), dim=2).flatten()
        found = found.double().view(plan.spec.groups, -1)
        return found if self._by_channel(plan) else found.square().sum(1).sqrt().unsqueeze(0)

    def align(self, weights: Tensor, entries: Tensor) -> Tensor:
        """One weight for each channel."""
        weights = weights.flatten().repeat_interleave(entries.shape[1] // weights.numel())
        return weights.view(-1, *[1] * (entries.dim() - 2))

    def weight_vjp(self, kept: Kept, output_grad: Tensor, plan: Plan) -> Tensor:
        """The weight VJP of the kept input channels, zero for the others."""
        spec, (groups, channels) = plan.spec, self._chosen(kept.where, plan)
        outer = spec.out_channels // spec.groups
        result = output_grad.new_zeros(spec.weight_shape)
        if not channels.numel():
            return result
        if len(groups) < spec.groups:
            output_grad = output_grad.index_select(1, _flat(groups, _every(groups, outer), outer))
        small = replace_channels(spec, len(groups), channels.shape[1], outer)
        grad = by_group(planned_weight_vjp(kept.entries, output_grad, small), small).transpose(1, 2)
        by_channel = by_group(result, spec).transpose(1, 2)  # a view, [G, C / G, D / G, *K]
        by_channel.index_put_((groups.unsqueeze(1), channels), grad, accumulate=True)  # a channel may be kept twice
        return result

    def input_vjp(self, kept: Kept, weight: Tensor, plan: Plan) -> Tensor:
        """The input VJP of the kept output channels."""
        spec, (groups, channels) = plan.spec, self._chosen(kept.where, plan)
        inner = spec.in_channels // spec.groups
        if not channels.numel():
            return kept.entries.new_zeros(spec.input_shape)
        small = replace_channels(spec, len(groups), inner, channels.shape[1])
        kernels = from_groups(by_group(weight, spec)[groups.unsqueeze(1), channels], small)
        grad = planned_input_vjp(kept.entries, kernels, small)
        if len(groups) == spec.groups:
            return grad
        result = kept.entries.new_zeros(spec.input_shape)
        return result.index_add_(1, _flat(groups, _every(groups, inner), inner), grad)

    def multiply_adds(self, plan: Plan) -> float:
        """In proportion to the channels."""
        return plan.share * plan.spec.multiply_adds

    def _by_channel(self, plan: Plan) -> bool:
        return plan.places.shape == (plan.channels,) and plan.places.batch == plan.spec.groups

    def _chosen(self, where: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Kept groups ``[G']`` and the channels kept of each ``[G', S]``."""
        if self._by_channel(plan):
            return torch.arange(plan.spec.groups, device=where.device), where.expand(plan.spec.groups, -1)
        return where[0], _every(where[0], plan.channels)


def _every(groups: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=groups.device).expand(len(groups), -1)


def _flat(groups: Tensor, channels: Tensor, size: int) -> Tensor:
    """Flat numbers of channels ``[G', S]`` of groups ``[G']``."""
    return (groups.unsqueeze(1) * size + channels).flatten()


CHANNELS = ChannelUnit()
"""Input channels for a weight VJP, output channels for an input VJP."""
