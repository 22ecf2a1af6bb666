"""Normalisations: the input in a few bits, and a gradient that stays unbiased although it uses them twice.

What is held is ``x̂ = (x - μ) r`` in :class:`randbp.codecs.Uniform`, dithered: the entries of a block must be of one
scale, and those of several channels are only when they are normalised. With ``y = γ x̂ + β`` and ``v`` the
output gradient,

    γ̄ = Σ v x̂,    β̄ = Σ v,    x̄ = r (γ v - mean(γ v) - x̂ mean(γ v x̂)),

where means run over the ``m`` entries that were normalised together. Let ``x̃`` with ``E x̃ = x̂`` stand for ``x̂``.
The gradient of ``γ`` is linear in it. The last term of ``x̄_i`` is not: in ``x̃_i Σ_j γ v_j x̃_j / m`` the noise of entry
``i`` meets itself, which adds ``var(x̃_i) γ v_i / m`` to its mean. Subtractive dither (:mod:`.dithered`) has a known
variance, ``h²/12``, so this excess is taken off and the gradient is unbiased. It matters for layer and group
normalisation of few entries; where ``m`` is so large that the excess is below 1e-5 of ``r γ v_i``, it is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.once import edge_of, not_differentiable
from ..autograd.transforms import refuses_vectorised
from ..codecs import Uniform
from ..tn.execute.native import memory_format_of
from .layout import pieces
from .normalised import Normalised, are_single, normalised
from .recipes import Recipe, remember
from .rules import Call, is_plain, lean_version_of

_SMALL = 32
"""Rows with fewer entries would need as many bytes for their scales as rounding saves."""

_STRETCH = 2**17

_NEGLIGIBLE = 1e-5
"""Relative excess of an input gradient below which it is not corrected."""


@dataclass(frozen=True)
class _Groups:
    """Entries ``[N, C, S]``; each ``C / groups`` channels, of one example or of all, are normalised together."""

    shape: tuple[int, int, int]
    groups: int
    over_batch: bool

    @property
    def per_row(self) -> int:
        """Channels of one example that are rounded in one stretch: as many as a processor's cache has room for."""
        _, channels, size = self.shape
        return next(k for k in range(channels, 0, -1) if channels % k == 0 and (k * size <= _STRETCH or k == 1))

    def rows(self, values: Tensor) -> Tensor:
        """Values ``[N or 1, C]`` for each stretch, ``[N·C / K, K]``."""
        return values.expand(self.shape[:2]).reshape(-1, self.per_row)

    def pieces(self, device: torch.device) -> list[tuple[slice, Any]]:
        """Stretches that fit a processor's cache: which rows, and which part of a tensor ``[N, C / K, K, S]``.

        No piece spans more than one example where an example has several stretches: such a part is a view of the
        tensor however it lies in memory.
        """
        examples, channels, size = self.shape
        each, entries = channels // self.per_row, self.per_row * size
        count = examples if each == 1 else each
        parts = [slice(p.start // entries, p.stop // entries) for p in pieces(count * entries, device, entries)]
        if each == 1:
            return [(part, (part, 0)) for part in parts]
        rows = ((n, part, n * each) for n in range(examples) for part in parts)
        return [(slice(first + part.start, first + part.stop), (n, part)) for n, part, first in rows]

    def per_channel(self, values: Tensor) -> Tensor:
        """Statistics of each group, repeated for its channels: ``[N or 1, C]``."""
        repeated = values.view(-1, self.groups, 1).expand(-1, -1, self.shape[1] // self.groups)
        return repeated.reshape(-1, self.shape[1])

    @property
    def together(self) -> int:
        """Number ``m`` of entries that share a mean."""
        examples, channels, size = self.shape
        return (examples if self.over_batch else 1) * channels // self.groups * size

    def per_group(self, values: Tensor) -> Tensor:
        """Sums over all that is normalised together, of sums ``[N, C]`` over positions; ``[N or 1, C]``."""
        channels = self.shape[1]
        sums = values.sum(0, keepdim=True) if self.over_batch else values
        if self.groups == channels:
            return sums
        sums = sums.unflatten(1, (self.groups, -1)).sum(2, keepdim=True)
        return sums.expand(-1, -1, channels // self.groups).flatten(1)


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
        size, together = groups.shape[2], groups.per_row
        y, *statistics = normalise()
        mean, rstd = (groups.per_channel(values) for values in statistics)
        layout = Uniform(bits, together * size, min(256, together * size), dithered=True)

        means, rstds = (groups.rows(values).unsqueeze(2) for values in (mean, rstd))

        def normalised(rows: Tensor, part: slice) -> Tensor:
            return (rows.view(-1, together, size) - means[part]).mul_(rstds[part]).flatten(1)

        codes, scales = _encode(layout, x.reshape(-1, together * size), seed, normalised)
        # The seed travels with the saved tensors: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), codes, scales, rstd, weight, edge)
        ctx.layout, ctx.groups, ctx.shape, ctx.dtype = layout, groups, x.shape, x.dtype
        return y.detach()  # no view, which nobody could change in place

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, codes, scales, rstd, weight, edge = ctx.saved_tensors
        groups: _Groups = ctx.groups
        examples, channels, size = groups.shape
        together = groups.per_row
        with torch.no_grad():
            grad = output_grad.reshape(examples, channels, size).to(rstd.dtype)
            value = ctx.layout.decode(codes, scales, int(seed), dtype=rstd.dtype).view(examples, channels, size)
            sums = grad.sum(2)
            value_rows, grad_rows = value.view(-1, together, size), grad.unflatten(1, (-1, together))
            parts = groups.pieces(value.device)
            sums_of_rows = [(value_rows[rows] * grad_rows[place]).sum(2) for rows, place in parts]
            products = torch.cat(sums_of_rows).view(examples, channels)
            weight_grad = products.sum(0) if ctx.needs_input_grad[1] else None
            bias_grad = sums.sum(0) if ctx.needs_input_grad[2] else None
            input_grad = None
            if ctx.needs_input_grad[0]:
                scale = rstd if weight is None else rstd * weight
                if weight is not None:
                    sums, products = sums * weight, products * weight
                first, second = groups.per_group(sums), groups.per_group(products)
                factor = rstd / groups.together
                value.mul_((second * factor).neg_().unsqueeze(2)).sub_((first * factor).unsqueeze(2))
                value.addcmul_(grad, scale.unsqueeze(2))
                if _is_corrected(ctx.layout.bits, groups.together):
                    excess = groups.rows(scale / groups.together).unsqueeze(2)
                    for rows, place in parts:
                        variance = ctx.layout.variances(scales[rows]).view(-1, together, size).to(grad.dtype)
                        value_rows[rows].addcmul_(variance.mul_(grad_rows[place]), excess[rows])
                input_grad = value.to(ctx.dtype).view(ctx.shape)
        grads = not_differentiable(
            "lean normalisation", (input_grad, weight_grad, bias_grad), (edge, weight, output_grad)
        )
        return (*grads, *[None] * 5)


class _RowNorm(torch.autograd.Function):
    """Layer and root-mean-square normalisation of rows ``[R, M]``, with parameters per column."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        edge: Tensor | None,
        normalise: Callable[[], tuple[Tensor, Tensor | None, Tensor]],
        columns: int,
        bits: int,
        seed: int,
    ) -> Tensor:
        y, mean, rstd = normalise()
        layout = Uniform(bits, columns, min(256, columns), dithered=True)

        def normalised(rows: Tensor, part: slice) -> Tensor:
            return (rows if mean is None else rows - mean[part]) * rstd[part]

        codes, scales = _encode(layout, x.reshape(-1, columns), seed, normalised)
        ctx.save_for_backward(torch.tensor(seed), codes, scales, rstd, weight, edge)
        ctx.layout, ctx.columns, ctx.shape, ctx.dtype = layout, columns, x.shape, x.dtype
        ctx.centred = mean is not None
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, codes, scales, rstd, weight, edge = ctx.saved_tensors
        columns, needs_input = ctx.columns, ctx.needs_input_grad[0]
        with torch.no_grad():
            grad = output_grad.reshape(-1, columns)
            flat_weight = None if weight is None else weight.reshape(-1).to(rstd.dtype)
            value = ctx.layout.decode(codes, scales, int(seed), dtype=rstd.dtype)
            weight_grad = torch.zeros(columns, dtype=rstd.dtype, device=grad.device)
            bias_grad = torch.zeros_like(weight_grad)
            for part in pieces(value.numel(), value.device, columns):
                rows = slice(part.start // columns, part.stop // columns)
                v, x, r = grad[rows].to(rstd.dtype), value[rows], rstd[rows]
                weight_grad += torch.linalg.vecdot(v, x, dim=0)
                bias_grad += v.sum(0)
                if not needs_input:
                    continue
                v = v if flat_weight is None else v * flat_weight
                product = torch.linalg.vecdot(v, x, dim=1).unsqueeze(1)
                x.mul_(product.mul_(r / -columns)).addcmul_(v, r)
                if ctx.centred:
                    x.sub_(v.mean(1, keepdim=True) * r)
                if _is_corrected(ctx.layout.bits, columns):
                    x.addcmul_(ctx.layout.variances(scales[rows]).mul_(v), r / columns)
            input_grad = value.to(ctx.dtype).view(ctx.shape) if needs_input else None
        shaped = [g.view(weight.shape) if weight is not None else None for g in (weight_grad, bias_grad)]
        wanted = [g if needed else None for g, needed in zip(shaped, ctx.needs_input_grad[1:3], strict=True)]
        grads = not_differentiable("lean normalisation", (input_grad, *wanted), (edge, weight, output_grad))
        return (*grads, *[None] * 5)


def _encode(
    layout: Uniform, rows: Tensor, seed: int, prepare: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """Codes and scales of what a function makes of some rows at a time."""
    parts = []
    for span in pieces(rows.numel(), rows.device, layout.entries):
        part = slice(span.start // layout.entries, span.stop // layout.entries)
        parts.append(layout.encode(prepare(rows[part], part), seed, part.start * layout.blocks))
    codes, scales = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scales)


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
    session = call.session
    return _ChannelNorm.apply(x, weight, bias, edge_of(x), normalise, groups, session.bits, session.seed())


def _cast(x: Tensor) -> Tensor:
    """What autocast makes of an input: on a GPU these operations run in single precision."""
    return x.float() if x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype != torch.float64 else x


@lean_version_of([F.batch_norm], exact=True)
def _batch_norm(
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


@lean_version_of([F.group_norm], exact=False)
def _group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
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


@lean_version_of([F.instance_norm], exact=False)
def _instance_norm(
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


@lean_version_of([F.layer_norm], exact=False)
def _layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    columns = int(torch.Size(normalized_shape).numel())
    if not _needs_grad(input, weight, bias) or not _is_roundable(input, columns):
        return NotImplemented
    x = _cast(input)

    def normalise() -> tuple[Tensor, Tensor | None, Tensor]:
        y, mean, rstd = torch.native_layer_norm(x, list(normalized_shape), weight, bias, eps)
        return y, mean.view(-1, 1), rstd.view(-1, 1)

    session = call.session
    return _RowNorm.apply(x, weight, bias, edge_of(x), normalise, columns, session.bits, session.seed())


@lean_version_of([F.rms_norm], exact=False)
def _rms_norm(
    call: Call, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    columns = int(torch.Size(normalized_shape).numel())
    if not _needs_grad(input, weight) or not _is_roundable(input, columns):
        return NotImplemented

    def normalise() -> tuple[Tensor, Tensor | None, Tensor]:
        y = call.run()
        precise = input.reshape(-1, columns).to(torch.promote_types(input.dtype, torch.float32))
        small = torch.finfo(input.dtype).eps if eps is None else eps
        return y, None, precise.square().mean(1, keepdim=True).add_(small).rsqrt_()

    session = call.session
    return _RowNorm.apply(input, weight, None, edge_of(input), normalise, columns, session.bits, session.seed())
