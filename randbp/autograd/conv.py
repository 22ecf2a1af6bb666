"""Convolution with an exact forward pass and estimated VJPs."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..estimators import Draw, Estimator, Exact
from ..tn import ConvSpec
from .once import edge_of, not_differentiable

_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def native_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """PyTorch's convolution of as many dimensions as the weight; ``geometry``: stride, padding, dilation, groups."""
    return _FORWARD[weight.dim() - 2](x, weight, bias, *geometry)


class _EstimatedConv(torch.autograd.Function):
    """Holds for backward what the estimators need, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        edge: Tensor | None,
        geometry: tuple[Any, ...],
        spec: ConvSpec,
        weight_vjp: Estimator,
        input_vjp: Estimator,
        seed: int,
    ) -> Tensor:
        output = native_conv(x, weight, bias, *geometry)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        held = _exact_or(weight_vjp).sketch(x, spec, Draw(seed).child(0)) if needs_weight else ()
        # The seed travels with the saved tensors: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), weight if needs_input else None, edge, *held)
        ctx.spec, ctx.weight_vjp, ctx.input_vjp = spec, _exact_or(weight_vjp), _exact_or(input_vjp)
        ctx.channels_last = (
            x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        )
        return output

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, weight, edge, *held = ctx.saved_tensors
        draw = Draw(int(seed))
        input_grad = weight_grad = bias_grad = None
        with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                kernel = weight
                if ctx.channels_last:  # the native kernel takes its memory format from the weight, x being gone
                    kernel = weight.contiguous(memory_format=torch.channels_last)
                input_grad = ctx.input_vjp.input_vjp(output_grad, kernel, ctx.spec, draw.child(1))
            if ctx.needs_input_grad[1]:
                weight_grad = ctx.weight_vjp.weight_vjp(tuple(held), output_grad, ctx.spec, draw.child(0))
            if ctx.needs_input_grad[2]:
                bias_grad = output_grad.sum([d for d in range(output_grad.dim()) if d != 1])
        grads = not_differentiable(
            "randbp convolution", (input_grad, weight_grad, bias_grad), (edge, weight, output_grad)
        )
        return (*grads, None, None, None, None, None, None)


def estimated_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Any, ...],
    spec: ConvSpec,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int,
) -> Tensor:
    """Batched convolution whose backward pass is estimated.

    Args:
        x: ``[N, C, *I]``.
        weight: ``[D, C / G, *K]``.
        bias: ``[D]`` or ``None``; its gradient is exact.
        geometry: Stride, padding, dilation and groups as PyTorch's function takes them.
        spec: The same as a :class:`randbp.tn.ConvSpec`.
        weight_vjp: Estimator of the weight's gradient.
        input_vjp: Estimator of the input's gradient.
        seed: Determines the sample.
    """
    if torch.is_autocast_enabled(x.device.type):  # cast outside, so that the casts are differentiated, too
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = _cast(x, dtype), _cast(weight, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    output: Tensor = _EstimatedConv.apply(x, weight, bias, edge_of(x), geometry, spec, weight_vjp, input_vjp, seed)
    return output


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _exact_or(estimator: Estimator) -> Estimator:
    """Any estimator that keeps everything is PyTorch's own VJP."""
    return Exact() if estimator.exact else estimator
