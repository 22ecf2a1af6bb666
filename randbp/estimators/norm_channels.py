"""Channels drawn with probabilities in proportion to their norms."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..layers.grouped_weights import by_group
from ..layers.layer_specs import replace_channels
from ..tn import LayerSpec
from .base import Estimator, check_top, kept
from .channels import flat_channels, input_vjp_of_channels, weight_vjp_of_channels
from .chunks import chunks
from .description import Description
from .inclusion import weighted_draw
from .pairs import index_dtype


@dataclass(frozen=True)
class NormChannels(Estimator):
    """Keep a fixed number of channels, drawn without replacement in proportion to their norms.

    Input channels with probabilities ``π_c = min(1, λ‖X_c‖)`` for a weight VJP; for an input VJP output channels with
    ``π_d = min(1, λ‖V_d‖‖W_d‖)``, the optimal ones, as both factors are known there. Weights are ``1/π``, channels with
    ``π = 1`` are always kept, each group keeps ``⌊p·C⌋`` of its channels, and the draw is systematic in a random order.
    Groups too narrow for that (depthwise convolutions) are kept or dropped as a whole. A tenth of the mean norm is
    added to each norm.

    In the weight VJP the channel is an open leg: the variance is ``Σ_c (1/π_c - 1) ‖g_c‖²`` with ``g_c`` the gradient
    of channel ``c``. Held are the kept channels and an index of 2 or 4 bytes for each.

    Source: Adelman et al., Faster neural network training with approximate tensor operations, NeurIPS 2021
    (arXiv:1805.08079).

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        top: Share of the kept channels, in ``[0, 1)``, that goes to the largest norms without a draw.

    Raises:
        ValueError: If ``keep`` or ``top`` is out of range.

    Example:
        >>> NormChannels(keep=0.5, top=0.25)
        NormChannels(keep=0.5, top=0.25)
    """

    top: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_top("NormChannels", self.top)

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The kept channels ``[N, S, *I]``, weighted, and their numbers, see :meth:`_sample`."""
        size = spec.in_channels // spec.groups
        index, weights = self._sample(_norms(input), spec.groups, size, draw)
        rows = input.index_select(1, flat_channels(*self._channels(index, size), size))
        rows *= self._per_channel(weights, size).to(rows.dtype).view(-1, *[1] * spec.dims)
        return rows, index.to(index_dtype(spec.in_channels))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The native weight VJP of the kept channels; zero for the dropped ones."""
        groups, channels = self._channels(held[1].long(), spec.in_channels // spec.groups)
        return weight_vjp_of_channels(held[0], output_grad, groups, channels, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The native input VJP of the kept output channels."""
        size = spec.out_channels // spec.groups
        kernels = by_group(weight, spec)
        norms = _norms(output_grad) * torch.linalg.vector_norm(kernels.flatten(2), dim=2).flatten()
        index, weights = self._sample(norms, spec.groups, size, draw)
        groups, channels = self._channels(index, size)
        factors = self._per_channel(weights, size).to(weight.dtype).view(*channels.shape, *[1] * (weight.dim() - 1))
        scaled = kernels[groups.unsqueeze(1), channels] * factors
        return input_vjp_of_channels(scaled, output_grad, groups, channels, spec)

    def _sample(self, norms: Tensor, groups: int, size: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """Channels kept of each group ``[G, S]``, or groups kept as a whole ``[1, G']``; and their weights."""
        norms, count = norms.double().view(groups, size), kept(size, self.keep)
        if self.keep * size < 1:
            norms, count = norms.square().sum(1).sqrt().unsqueeze(0), kept(groups, self.keep)
        generator = draw.generator(norms.device)
        start = torch.rand(len(norms), 1, generator=generator, device=norms.device)
        # Few channels in a fixed order would leave a systematic draw few outcomes.
        order = torch.rand(norms.shape, generator=generator, device=norms.device).argsort(1)
        drawn, weights = weighted_draw(norms.gather(1, order), count, self.top, start)
        return order.gather(1, drawn), weights

    def _channels(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Kept groups ``[G']`` and the channels kept of each ``[G', S]``, from the sampled indices."""
        if self.keep * size < 1:
            return index[0], torch.arange(size, device=index.device).expand(index.shape[1], -1)
        return torch.arange(len(index), device=index.device), index

    def _per_channel(self, weights: Tensor, size: int) -> Tensor:
        """Weight of each kept channel, in their order."""
        return weights.flatten().repeat_interleave(size if self.keep * size < 1 else 1)

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        inner, outer = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        if self.keep * inner < 1:
            count = kept(spec.groups, self.keep)
            indices, small = count, replace_channels(spec, count, inner, outer)
        else:
            small = replace_channels(spec, spec.groups, kept(inner, self.keep), outer)
            indices = small.in_channels
        if self.keep * outer < 1:
            input_ = replace_channels(spec, kept(spec.groups, self.keep), inner, outer)
        else:
            input_ = replace_channels(spec, spec.groups, inner, kept(outer, self.keep))
        held = prod(small.input_shape) * dtype.itemsize
        held += indices * index_dtype(spec.in_channels).itemsize
        variance = "Σ_c (1/π_c - 1) ‖g_c‖² and joint terms, π_c = min(1, λ‖X_c‖)"
        return Description(held, small.multiply_adds, input_.multiply_adds, None, variance)


def _norms(tensor: Tensor) -> Tensor:
    """Norm of each channel of ``[N, C, *P]`` over examples and positions, ``[C]``."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    total = tensor.new_zeros(tensor.shape[1], dtype=dtype)
    for part in chunks(len(tensor)):
        rows = tensor[part].flatten(2) if tensor.dim() > 2 else tensor[part].unsqueeze(2)
        total += torch.linalg.vector_norm(rows, dim=(0, 2), dtype=dtype).square()
    return total.sqrt()
