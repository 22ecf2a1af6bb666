"""Channels drawn without replacement: the VJP is that of a smaller layer with the kept channels."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.grouped_weights import by_group, from_groups
from ..layers.layer_specs import replace_channels
from ..tn import LayerSpec
from .base import Estimator, kept
from .description import Description
from .planned import planned_input_vjp, planned_weight_vjp


@dataclass(frozen=True)
class Channels(Estimator):
    """Keep channels, drawn without replacement: input channels for a weight VJP, output channels for an input VJP.

    Each group keeps ``⌊p·C⌋`` channels of its own with weight ``C/|S|``. Groups too narrow for that (depthwise
    convolutions) are themselves kept or dropped as a whole. In the weight VJP the channel is an open leg: the
    gradient of a dropped channel is zero, and the relative error is ``√(1/p - 1)`` whatever the data.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        bernoulli: If true, each channel of a group (the same in all groups) is kept on its own with probability ``p``
            and weight ``1/p``, as in the reference curve; memory is then random, and a draw may keep nothing.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Channels(keep=0.5)
        Channels(keep=0.5, bernoulli=False)
    """

    bernoulli: bool = False

    @property
    def fixed_size(self) -> bool:
        """True unless draws are Bernoulli."""
        return not self.bernoulli

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The kept channels ``[N, S, *I]``."""
        groups, channels = self._sample(spec.groups, spec.in_channels // spec.groups, draw, input.device)
        return (input.index_select(1, flat_channels(groups, channels, spec.in_channels // spec.groups)),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact weight VJP of the kept channels, scaled; zero for the dropped ones."""
        size = spec.in_channels // spec.groups
        groups, channels = self._sample(spec.groups, size, draw, output_grad.device)
        grad = weight_vjp_of_channels(held[0], output_grad, groups, channels, spec)
        return grad.mul_(self._weight(spec.in_channels, channels))

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact input VJP of the kept output channels, scaled."""
        size = spec.out_channels // spec.groups
        groups, channels = self._sample(spec.groups, size, draw, output_grad.device)
        kernels = by_group(weight, spec)[groups.unsqueeze(1), channels]
        if channels.numel():
            kernels = kernels * self._weight(spec.out_channels, channels)
        return input_vjp_of_channels(kernels, output_grad, groups, channels, spec)

    def _sample(self, groups: int, size: int, draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
        """Kept groups ``[G']`` in order, and the channels kept of each ``[G', S]``."""
        if self.bernoulli:
            return self._bernoulli(groups, size, draw, device)
        if self.keep * size < 1:
            chosen = draw.permutation(groups, device)[: kept(groups, self.keep)].sort().values
            return chosen, torch.arange(size, device=device).expand(len(chosen), -1)
        scores = torch.rand(groups, size, generator=draw.generator(device), device=device)
        return torch.arange(groups, device=device), scores.argsort(dim=1)[:, : kept(size, self.keep)]

    def _bernoulli(self, groups: int, size: int, draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
        """The Bernoulli form of :meth:`_sample`, drawn on the host so that the random sizes are known there."""
        whole_groups = self.keep * size < 1 < groups
        leg = groups if whole_groups else size
        chosen = (
            (torch.rand(leg, generator=draw.generator()) < self.keep).nonzero().flatten().to(device, non_blocking=True)
        )
        if whole_groups:
            return chosen, torch.arange(size, device=device).expand(len(chosen), -1)
        return torch.arange(groups, device=device), chosen.expand(groups, -1)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        share_in, share_out = self._share(spec.groups, inner), self._share(spec.groups, outer)
        whole = spec.batch_size * spec.in_channels * prod(spec.input_size) * dtype.itemsize
        weight, input_ = (round(share * spec.multiply_adds) for share in (share_in, share_out))
        return Description(round(share_in * whole), weight, input_, 1 / share_in - 1, "1/p - 1, p the share kept")

    def _share(self, groups: int, size: int) -> float:
        """Share of the channels that is kept (its mean if it is random)."""
        if self.bernoulli:
            return self.keep
        return kept(groups, self.keep) / groups if self.keep * size < 1 else kept(size, self.keep) / size

    def _weight(self, size: int, channels: Tensor) -> float:
        return 1 / self.keep if self.bernoulli else size / channels.numel()


def weight_vjp_of_channels(
    input: Tensor, output_grad: Tensor, groups: Tensor, channels: Tensor, spec: LayerSpec
) -> Tensor:
    """Exact weight VJP of some input channels ``[N, S, *I]``, zero for the others.

    Args:
        input: The kept channels.
        output_grad: ``[N, D, *O]``.
        groups: Kept groups ``[G']``.
        channels: The channels kept of each ``[G', S / G']``, numbered within the group.
        spec: The whole layer.
    """
    outer = spec.out_channels // spec.groups
    result = output_grad.new_zeros(spec.weight_shape)
    if channels.numel():
        if len(groups) < spec.groups:
            every = torch.arange(outer, device=groups.device).expand(len(groups), -1)
            output_grad = output_grad.index_select(1, flat_channels(groups, every, outer))
        small = replace_channels(spec, len(groups), channels.shape[1], outer)
        grad = by_group(planned_weight_vjp(input, output_grad, small), small).transpose(1, 2)
        by_channel = by_group(result, spec).transpose(1, 2)  # a view, [G, C / G, D / G, *K]
        by_channel.index_put_((groups.unsqueeze(1), channels), grad, accumulate=True)  # a channel may be kept twice
    return result


def input_vjp_of_channels(
    kernels: Tensor, output_grad: Tensor, groups: Tensor, channels: Tensor, spec: LayerSpec
) -> Tensor:
    """Exact input VJP of some output channels.

    Args:
        kernels: Kernels of the kept output channels, ``[G', S / G', C / G, *K]``.
        output_grad: ``[N, D, *O]``, all channels.
        groups: Kept groups ``[G']``.
        channels: The output channels kept of each ``[G', S / G']``, numbered within the group.
        spec: The whole layer.
    """
    size, inner = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    if not channels.numel():
        return output_grad.new_zeros(spec.input_shape)
    kept_grad = output_grad.index_select(1, flat_channels(groups, channels, size))
    small = replace_channels(spec, len(groups), inner, channels.shape[1])
    grad = planned_input_vjp(kept_grad, from_groups(kernels, small), small)
    if len(groups) == spec.groups:
        return grad
    every = torch.arange(inner, device=groups.device).expand(len(groups), -1)
    return output_grad.new_zeros(spec.input_shape).index_add_(1, flat_channels(groups, every, inner), grad)


def flat_channels(groups: Tensor, channels: Tensor, size: int) -> Tensor:
    """Flat channel numbers of the kept channels ``[G', S]`` of the kept groups ``[G']``."""
    return (groups.unsqueeze(1) * size + channels).flatten()
