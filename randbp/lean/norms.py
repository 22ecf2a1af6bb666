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
from typing import Any, Self

import torch
from torch import Tensor

from ..codecs import Stream
from ..kernels import channel_norm_backward, encode_normalised, row_norm_backward
from ..kernels.levels import scale_dtype
from ..tn.execute.convolution_kernels import memory_format_of
from .lean_call import Call
from .lean_function import Made, run_lean
from .normalised import run_with_recipe

_SMALL = 32
"""Of rows with fewer entries, statistics and scales take as many bytes as rounding saves [entries]."""

_NEGLIGIBLE = 1e-5
"""Relative excess of an input gradient below which it is not corrected."""


@dataclass(frozen=True)
class _Channels:
    """Entries ``[N, C, S]``; each ``C / groups`` channels, of one example or of all, are normalised together."""

    shape: tuple[int, int, int]
    groups: int = 1
    over_batch: bool = False
    last: bool = False  # whether channels lie last in memory

    @classmethod
    def of(cls, x: Tensor, groups: int, over_batch: bool = False) -> Self:
        last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
        return cls((len(x), x.shape[1], x[0, 0].numel()), groups, over_batch, last)

    def statistics(self, values: Tensor) -> Tensor:
        """Statistics of each group, repeated for its channels: ``[N or 1, C]``."""
        repeated = values.view(-1, self.groups, 1).expand(-1, -1, self.shape[1] // self.groups)
        return repeated.reshape(-1, self.shape[1])

    def in_order(self, x: Tensor) -> Tensor:
        """A tensor ``[N, P, C, S]`` without gaps, ``S = 1`` if channels are to lie last, else ``P = 1``."""
        examples, channels, size = self.shape
        if self.last:
            return x.movedim(1, -1).reshape(examples, size, channels, 1).contiguous()
        return x.reshape(examples, 1, channels, size).contiguous()

    def back(self, values: Tensor, shape: torch.Size) -> Tensor:
        """The inverse, a view."""
        if self.last:
            return values.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return values.view(shape)

    def is_corrected(self, bits: int) -> bool:
        """Whether the excess ``h²/(12 m)`` of the gradient shows, for entries that span six standard deviations."""
        examples, channels, size = self.shape
        together = (examples if self.over_batch else 1) * channels // self.groups * size
        return (6 / (2**bits - 1)) ** 2 / (12 * together) > _NEGLIGIBLE

    def gradients(
        self, held: tuple[Tensor, Tensor, int, int], v: Tensor, rstd: Tensor, weight: Tensor | None, wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the input (if wanted), the weight and the bias, of the codes, their scales, the seed and the bits."""
        corrected = self.is_corrected(held[3])
        return channel_norm_backward(*held, v, rstd, weight, self.groups, self.over_batch, corrected, wanted)


@dataclass(frozen=True)
class _Rows(_Channels):
    """Rows ``[R, 1, M]`` that are normalised each, with parameters per column."""

    centred: bool = True  # whether the mean is taken off

    def gradients(
        self, held: tuple[Tensor, Tensor, int, int], v: Tensor, rstd: Tensor, weight: Tensor | None, wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = v.view(-1, self.shape[2])
        return row_norm_backward(*held, rows, rstd.view(-1), weight, self.centred, self.is_corrected(held[3]), wanted)


def _hold(
    call: Call,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    layout: _Channels,
    normalise: Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor]],
) -> Any:
    """Run a normalisation, which returns its output, means and reciprocal standard deviations, and hold ``x̂``."""
    seed, bits, shape, dtype = call.context.seed(), call.context.bits, x.shape, x.dtype
    parameters = [each for each in (weight, bias) if each is not None]
    shapes = [None if each is None else each.shape for each in (weight, bias)]

    def vjp(
        v: Tensor, wanted: tuple[bool, ...], noise: Stream, codes: Tensor, scales: Tensor, rstd: Tensor, weight: Any
    ) -> list[Tensor | None]:
        slopes = None if weight is None else weight.reshape(-1).to(rstd.dtype)
        held = (codes, scales, noise.seed, bits)
        x_grad, *sums = layout.gradients(held, layout.in_order(v), rstd, slopes, wanted[0])
        made = [grad.view(shape) for grad, shape in zip(sums, shapes, strict=True) if shape is not None]
        return [layout.back(x_grad.to(dtype), shape) if wanted[0] else None, *made]

    def make() -> Made:
        given = x.contiguous() if isinstance(layout, _Rows) else x
        y, mean, rstd = normalise(given)
        rstd = layout.statistics(rstd.to(scale_dtype(dtype)))
        mean = torch.zeros_like(rstd) if mean is None else layout.statistics(mean.to(rstd.dtype))
        codes, scales = encode_normalised(layout.in_order(given), mean, rstd, seed, bits)
        return y.detach(), (codes, scales, rstd, weight), vjp  # no view, which nobody could change in place

    return run_lean("Norm", make, x, *parameters, seed=seed, linked=[x])


def _is_served(x: Tensor, entries: int, *parameters: Tensor | None) -> bool:
    """Whether an input is a dense tensor, of rows that are not short, and something wants a gradient."""
    return (
        any(tensor is not None and tensor.requires_grad for tensor in (x, *parameters))
        and type(x) is Tensor
        and x.is_floating_point()
        and x.layout is torch.strided
        and x.numel() > 0
        and entries >= _SMALL
    )


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
    if not training or momentum is None or input.dim() < 2 or not input.numel():
        return NotImplemented
    options = (running_mean, running_var, True, momentum, eps)
    if not call.rounds:
        wanted = any(tensor is not None and tensor.requires_grad for tensor in (input, weight, bias))
        return run_with_recipe(call, input, weight, bias, options) if wanted else NotImplemented
    if not _is_served(input, input[0].numel(), weight, bias) or input[:, 0].numel() < 2:
        return NotImplemented
    layout = _Channels.of(input, input.shape[1], over_batch=True)
    return _hold(call, input, weight, bias, layout, lambda x: torch.native_batch_norm(x, weight, bias, *options))


def group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Group normalisation."""
    if input.dim() < 2 or not input.numel() or not _is_served(input, input[0].numel(), weight, bias):
        return NotImplemented
    if input.shape[1] % num_groups:
        return NotImplemented
    x = _cast(input)
    layout = _Channels.of(x, num_groups)

    def normalise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keeps_order = x.device.type == "cpu" and memory_format_of(x) != torch.contiguous_format
        plain = x if keeps_order else x.contiguous()
        return torch.native_group_norm(plain, weight, bias, *layout.shape, num_groups, eps)

    return _hold(call, x, weight, bias, layout, normalise)


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
    if not use_input_stats or input.dim() < 3 or not input.numel():
        return NotImplemented
    if not _is_served(input, input[0].numel(), weight, bias) or input[0, 0].numel() < 2:
        return NotImplemented

    def normalise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        precise = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(precise, 2, correction=0)
        return call.run(), mean, variance.add_(eps).rsqrt_()

    return _hold(call, input, weight, bias, _Channels.of(input, input.shape[1]), normalise)


def layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Layer normalisation."""
    shape = torch.Size(normalized_shape)
    if not _is_served(input, shape.numel(), weight, bias):
        return NotImplemented
    layout = _Rows((input.numel() // shape.numel(), 1, shape.numel()))
    return _hold(
        call, _cast(input), weight, bias, layout, lambda x: torch.native_layer_norm(x, list(shape), weight, bias, eps)
    )


def rms_norm(
    call: Call, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    """Root-mean-square normalisation."""
    columns = torch.Size(normalized_shape).numel()
    if not _is_served(input, columns, weight):
        return NotImplemented

    def normalise(x: Tensor) -> tuple[Tensor, None, Tensor]:
        y = call.run()  # first, so that errors are PyTorch's
        precise = x.reshape(-1, columns).to(torch.promote_types(x.dtype, torch.float32))
        small = torch.finfo(x.dtype).eps if eps is None else eps
        return y, None, precise.square().mean(1).add_(small).rsqrt_()

    layout = _Rows((input.numel() // columns, 1, columns), centred=False)
    return _hold(call, input, weight, None, layout, normalise)
