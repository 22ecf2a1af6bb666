"""Normalisations: the input in a few bits, and a gradient that stays unbiased although it uses them twice.

What is held is ``x̂ = (x - μ) r`` in few bits, dithered: the entries of a block must be of one scale, and those of
several channels or rows are only when they are normalised. With ``y = γ x̂ + β`` and ``v`` the output gradient,

    γ̄ = Σ v x̂,    β̄ = Σ v,    x̄ = r (γ v - mean(γ v) - x̂ mean(γ v x̂)),

where means run over the ``m`` entries that were normalised together. Let ``x̃`` with ``E x̃ = x̂`` stand for ``x̂``.
The gradient of ``γ`` is linear in it. The last term of ``x̄_i`` is not: in ``x̃_i Σ_j γ v_j x̃_j / m`` the noise of entry
``i`` meets itself, which adds ``var(x̃_i) γ v_i / m`` to its mean. Subtractive dither has a known variance, ``h²/12``,
so this excess is taken off and the gradient is unbiased. It matters for layer and group normalisation of few entries;
where ``m`` is so large that the excess is below 1e-5 of ``r γ v_i``, it is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..kernels import channel_norm_backward, encode_normalised, row_norm_backward
from ..kernels.levels import scale_dtype
from ..tn.execute.convolution_kernels import memory_format_of
from .lean_call import Call, is_plain
from .normalised import Normalised, are_single, normalised
from .recompute import Recipe, remember

_SMALL = 32
"""Of rows with fewer entries, statistics and scales take as many bytes as rounding saves."""

_NEGLIGIBLE = 1e-5
"""Relative excess of an input gradient below which it is not corrected."""


@dataclass(frozen=True)
class _Groups:
    """Entries ``[N, C, S]``; each ``C / groups`` channels, of one example or of all, are normalised together."""

    shape: tuple[int, int, int]
    groups: int
    over_batch: bool

    def per_channel(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Statistics of each group, repeated for its channels: ``[N or 1, C]``."""
        repeated = values.to(dtype).view(-1, self.groups, 1).expand(-1, -1, self.shape[1] // self.groups)
        return repeated.reshape(-1, self.shape[1])

    @property
    def together(self) -> int:
        """Number ``m`` of entries that share a mean."""
        examples, channels, size = self.shape
        return (examples if self.over_batch else 1) * channels // self.groups * size

    def in_order(self, x: Tensor, last: bool) -> Tensor:
        """A tensor ``[N, P, C, S]`` without gaps, ``S = 1`` if channels are to lie last, else ``P = 1``."""
        examples, channels, size = self.shape
        if last:
            return x.movedim(1, -1).reshape(examples, size, channels, 1).contiguous()
        return x.reshape(examples, 1, channels, size).contiguous()

    def back(self, values: Tensor, shape: torch.Size, last: bool) -> Tensor:
        """The inverse, a view."""
        if last:
            return values.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return values.view(shape)


class _ChannelNorm(torch.autograd.Function):
    """Batch, group and instance normalisation of ``[N, C, S]`` with parameters per channel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        edge: Tensor | None,
        normalise: Callable[[], tuple[Tensor, Tensor, Tensor]],
        groups: _Groups,
        bits: int,
        seed: int,
    ) -> Tensor:
        y, *statistics = normalise()
        last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
        mean, rstd = (groups.per_channel(values, scale_dtype(x.dtype)) for values in statistics)
        codes, scales = encode_normalised(groups.in_order(x, last), mean, rstd, seed, bits)
        # The seed travels with the saved tensors: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), codes, scales, rstd, weight, edge)
        ctx.bits, ctx.groups, ctx.last, ctx.shape, ctx.dtype = bits, groups, last, x.shape, x.dtype
        return y.detach()  # no view, which nobody could change in place

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, codes, scales, rstd, weight, edge = ctx.saved_tensors
        groups: _Groups = ctx.groups
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        with torch.no_grad():
            x_grad, weight_grad, bias_grad = channel_norm_backward(
                codes, scales, int(seed), ctx.bits, groups.in_order(output_grad, ctx.last), rstd,
                None if weight is None else weight.to(rstd.dtype), groups.groups, groups.over_batch,
                _is_corrected(ctx.bits, groups.together), needs_input,
            )  # fmt: skip
            input_grad = groups.back(x_grad.to(ctx.dtype), ctx.shape, ctx.last) if needs_input else None
        wanted = (input_grad, weight_grad if needs_weight else None, bias_grad if needs_bias else None)
        return (*refuse_second_derivatives("lean normalisation", wanted, (edge, weight, output_grad)), *[None] * 5)


class _RowNorm(torch.autograd.Function):
    """Layer and root-mean-square normalisation of rows ``[R, M]``, with parameters per column."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        edge: Tensor | None,
        normalise: Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor]],
        columns: int,
        bits: int,
        seed: int,
    ) -> Tensor:
        x = x.contiguous()
        y, mean, rstd = normalise(x)
        centred = mean is not None
        rstd = rstd.view(-1, 1).to(scale_dtype(x.dtype))
        mean = torch.zeros_like(rstd) if mean is None else mean.view(-1, 1).to(rstd.dtype)
        codes, scales = encode_normalised(x.view(-1, 1, 1, columns), mean, rstd, seed, bits)
        ctx.save_for_backward(torch.tensor(seed), codes, scales, rstd, weight, edge)
        ctx.bits, ctx.columns, ctx.centred, ctx.shape, ctx.dtype = bits, columns, centred, x.shape, x.dtype
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, codes, scales, rstd, weight, edge = ctx.saved_tensors
        needs_input, *needed = ctx.needs_input_grad[:3]
        with torch.no_grad():
            x_grad, *sums = row_norm_backward(
                codes, scales, int(seed), ctx.bits, output_grad.reshape(-1, ctx.columns).contiguous(),
                rstd.view(-1), None if weight is None else weight.reshape(-1).to(rstd.dtype), ctx.centred,
                _is_corrected(ctx.bits, ctx.columns),
                needs_input,
            )  # fmt: skip
            input_grad = x_grad.to(ctx.dtype).view(ctx.shape) if needs_input else None
        wanted = [g.view(weight.shape) if n and weight is not None else None for g, n in zip(sums, needed, strict=True)]
        grads = refuse_second_derivatives("lean normalisation", (input_grad, *wanted), (edge, weight, output_grad))
        return (*grads, *[None] * 5)


def _is_corrected(bits: int, together: int) -> bool:
    """Whether the excess ``h²/(12 m)`` of the gradient shows, for entries that span six standard deviations."""
    step = 6 / (2**bits - 1)
    return step**2 / (12 * together) > _NEGLIGIBLE


def _is_roundable(x: Tensor, entries: int) -> bool:
    return (
        type(x) is Tensor
        and x.is_floating_point()
        and x.layout is torch.strided
        and x.numel() > 0
        and entries >= _SMALL
    )


def _has_channels(x: Tensor) -> bool:
    """Whether there are entries, of examples with channels; PyTorch has its own answers where not."""
    return x.dim() >= 2 and x.numel() > 0


def _needs_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _grouped(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalise: Callable[[], tuple[Tensor, Tensor, Tensor]],
    groups: _Groups,
) -> Any:
    context = call.context
    return _ChannelNorm.apply(x, weight, bias, graph_edge(x), normalise, groups, context.bits, context.seed())


def _cast(x: Tensor) -> Tensor:
    """What autocast makes of an input: on a GPU these operations run in single precision."""
    return x.float() if x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype != torch.float64 else x


def batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Batch normalisation: rounded, or exact with a recipe for the output."""
    if not training or not _needs_grad(input, weight, bias) or not _has_channels(input) or momentum is None:
        return NotImplemented
    if not call.rounds:
        return _with_recipe(call, input, running_mean, running_var, weight, bias, momentum, eps)
    examples, channels = input.shape[:2]
    size = input[0, 0].numel()
    if not _is_roundable(input, channels * size) or examples * size < 2:
        return NotImplemented

    def normalise() -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)

    groups = _Groups((examples, channels, size), channels, over_batch=True)
    return _grouped(call, input, weight, bias, normalise, groups)


def _with_recipe(
    call: Call,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """PyTorch's batch normalisation, of whose output others need not hold a copy: it can be made again."""
    y: Tensor
    if type(x) is Tensor and weight is not None and bias is not None and are_single(x, weight, bias):
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        with torch.no_grad():
            step = normalised(x, y, Normalised(mean.detach(), rstd.detach(), weight.detach(), bias.detach()))
        if step is not None:
            if is_plain(y):
                remember(y, Recipe(x.detach(), (step,), (weight.detach(), bias.detach())))
            return y
    else:
        y = call.run()
    constants = tuple(tensor.detach() for tensor in (weight, bias) if tensor is not None)
    if is_plain(y) and len(constants) in (0, 2):
        scale, shift = constants or (None, None)
        remember(
            y, Recipe(x.detach(), (lambda x: F.batch_norm(x, None, None, scale, shift, True, 0.0, eps),), constants)
        )
    return y


def group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Group normalisation."""
    if not _needs_grad(input, weight, bias) or not _has_channels(input):
        return NotImplemented
    examples, channels = input.shape[:2]
    if not _is_roundable(input, input[0].numel()) or channels % num_groups:
        return NotImplemented
    size = input[0, 0].numel()
    x = _cast(input)

    def normalise() -> tuple[Tensor, Tensor, Tensor]:
        keeps_order = x.device.type == "cpu" and memory_format_of(x) != torch.contiguous_format
        plain = x if keeps_order else x.contiguous()
        return torch.native_group_norm(plain, weight, bias, examples, channels, size, num_groups, eps)

    return _grouped(call, x, weight, bias, normalise, _Groups((examples, channels, size), num_groups, False))


def instance_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Instance normalisation."""
    if not use_input_stats or not _has_channels(input) or input.dim() < 3 or not _needs_grad(input, weight, bias):
        return NotImplemented
    examples, channels = input.shape[:2]
    size = input[0, 0].numel()
    if not _is_roundable(input, channels * size) or size < 2:
        return NotImplemented

    def normalise() -> tuple[Tensor, Tensor, Tensor]:
        precise = input.flatten(2).to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(precise, 2, correction=0)
        return call.run(), mean, variance.add_(eps).rsqrt_()

    return _grouped(call, input, weight, bias, normalise, _Groups((examples, channels, size), channels, False))


def layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Layer normalisation."""
    columns = int(torch.Size(normalized_shape).numel())
    if not _needs_grad(input, weight, bias) or not _is_roundable(input, columns):
        return NotImplemented
    x = _cast(input)

    def normalise(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        y, mean, rstd = torch.native_layer_norm(x, list(normalized_shape), weight, bias, eps)
        return y, mean, rstd

    context = call.context
    return _RowNorm.apply(x, weight, bias, graph_edge(x), normalise, columns, context.bits, context.seed())


def rms_norm(
    call: Call, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    """Root-mean-square normalisation."""
    columns = int(torch.Size(normalized_shape).numel())
    if not _needs_grad(input, weight) or not _is_roundable(input, columns):
        return NotImplemented

    def normalise(x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        y = call.run()
        precise = x.reshape(-1, columns).to(torch.promote_types(input.dtype, torch.float32))
        small = torch.finfo(input.dtype).eps if eps is None else eps
        return y, None, precise.square().mean(1).add_(small).rsqrt_()

    context = call.context
    return _RowNorm.apply(input, weight, None, graph_edge(input), normalise, columns, context.bits, context.seed())
