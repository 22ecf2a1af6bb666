"""A layer with an exact forward pass and estimated VJPs."""

from typing import Any

import torch
from torch import Tensor

from ..estimators import Draw, Estimator, Exact
from .once import edge_of, not_differentiable
from .operations import Operation


class _Estimated(torch.autograd.Function):
    """Holds for backward what the estimators need, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        edge: Tensor | None,
        operation: Operation,
        weight_vjp: Estimator,
        input_vjp: Estimator,
        seed: int,
    ) -> Tensor:
        output = operation.native(x, weight, bias)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        held: tuple[Tensor, ...] = ()
        if needs_weight:
            held = _exact_or(weight_vjp).sketch(operation.channels_second(x), operation.spec, Draw(seed).child(0))
        # The seed travels with the saved tensors: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), weight if needs_input else None, edge, *held)
        ctx.operation, ctx.shapes = operation, (x.shape, weight.shape)
        ctx.weight_vjp, ctx.input_vjp = _exact_or(weight_vjp), _exact_or(input_vjp)
        ctx.channels_last = (
            weight.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        )
        return output

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, weight, edge, *held = ctx.saved_tensors
        operation, (input_shape, weight_shape), draw = ctx.operation, ctx.shapes, Draw(int(seed))
        input_grad = weight_grad = bias_grad = None
        with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
            grad = operation.channels_second(output_grad)
            if ctx.needs_input_grad[1]:  # first: its scratch memory is gone before the input's gradient is there
                weight_grad = ctx.weight_vjp.weight_vjp(tuple(held), grad, operation.spec, draw.child(0))
                weight_grad = weight_grad.view(weight_shape)
            if ctx.needs_input_grad[0]:
                kernel = operation.kernel(weight)
                if ctx.channels_last:  # the native kernel takes its memory format from the weight, x being gone
                    kernel = kernel.contiguous(memory_format=torch.channels_last)
                input_grad = ctx.input_vjp.input_vjp(grad, kernel, operation.spec, draw.child(1))
                input_grad = operation.channels_back(input_grad, input_shape)
            if ctx.needs_input_grad[2]:
                bias_grad = grad.sum([d for d in range(grad.dim()) if d != 1])
        grads = not_differentiable(operation.title, (input_grad, weight_grad, bias_grad), (edge, weight, output_grad))
        return (*grads, None, None, None, None, None)


def estimated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operation: Operation,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int,
) -> Tensor:
    """A layer whose backward pass is estimated.

    Args:
        x: Input, with a batch dimension if it is a convolution's.
        weight: As PyTorch's function takes it.
        bias: ``[D]`` or ``None``; its gradient is exact.
        operation: Which layer.
        weight_vjp: Estimator of the weight's gradient.
        input_vjp: Estimator of the input's gradient.
        seed: Determines the sample.
    """
    if torch.is_autocast_enabled(x.device.type):  # cast outside, so that the casts are differentiated, too
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = _cast(x, dtype), _cast(weight, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    output: Tensor = _Estimated.apply(x, weight, bias, edge_of(x), operation, weight_vjp, input_vjp, seed)
    return output


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _exact_or(estimator: Estimator) -> Estimator:
    """Any estimator that keeps everything is PyTorch's own VJP."""
    return Exact() if estimator.exact else estimator
