"""A layer with an exact forward pass and estimated VJPs."""

from typing import Any

import torch
from torch import Tensor

from .._torch.graph_break import graph_break
from .._torch.hooks import apart_from_modes, transformed
from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from .._torch.state import without_autocast
from ..estimators import Estimator
from ..tn import LayerSpec
from .compiled import compiled
from .fastest import fastest
from .operations import Operation
from .transforms import is_transformed, not_transformed, refuses_vectorised
from .vjps import bias_vjp, input_vjp, memory_format_of, output, sketch, weight_vjp


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
        spec: LayerSpec,
        weight_estimator: Estimator,
        input_estimator: Estimator,
        seed: int,
    ) -> Tensor:
        y = output(x, weight, bias, operation, spec)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        held: tuple[Tensor, ...] = ()
        if needs_weight:
            with without_autocast(x):  # held in the precision that the forward pass ran in
                held = sketch(x, operation, spec, weight_estimator, seed)
        # The seed travels with the saved tensors: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), weight if needs_input else None, edge, *held)
        ctx.operation, ctx.spec, ctx.shapes = operation, spec, (x.shape, weight.shape)
        ctx.weight_estimator, ctx.input_estimator = weight_estimator, input_estimator
        ctx.memory_formats = memory_format_of(x, operation), memory_format_of(weight, operation)
        return y

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        raise not_transformed()

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, weight, edge, *held = ctx.saved_tensors
        operation, spec, (input_shape, weight_shape), seed = ctx.operation, ctx.spec, ctx.shapes, int(seed)
        input_format, weight_format = ctx.memory_formats
        input_grad = weight_grad = bias_grad = None
        with torch.no_grad(), without_autocast(output_grad):
            grad = operation.channels_second(output_grad)
            if ctx.needs_input_grad[1]:  # first: its scratch memory is gone before the input's gradient is there
                weight_grad = weight_vjp(
                    tuple(held), grad, weight_shape, spec, ctx.weight_estimator, seed, weight_format
                )
            if ctx.needs_input_grad[0]:
                input_grad = input_vjp(
                    grad, weight, input_shape, operation, spec, ctx.input_estimator, seed, input_format
                )
            if ctx.needs_input_grad[2]:
                bias_grad = bias_vjp(output_grad, operation)
        grads = refuse_second_derivatives(
            operation.title, (input_grad, weight_grad, bias_grad), (edge, weight, output_grad)
        )
        return (*grads, None, None, None, None, None, None)


def estimated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operation: Operation,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int | Tensor,
) -> Tensor:
    """A layer whose backward pass is estimated.

    Args:
        x: Input, with a batch dimension if it is a convolution's.
        weight: As PyTorch's function takes it.
        bias: ``[D]`` or ``None``; its gradient is exact.
        operation: Which layer.
        weight_vjp: Estimator of the weight's gradient.
        input_vjp: Estimator of the input's gradient.
        seed: Determines the sample; while ``torch.compile`` traces, a tensor.

    Raises:
        RuntimeError: While a CUDA graph is captured, or within a transform of ``torch.func``.
    """
    # Cast outside, so that the casts are differentiated, too. (Tensors without data are on no device that autocasts.)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = _cast(x, dtype), _cast(weight, dtype)
        bias = None if bias is None else _cast(bias, dtype)
    if isinstance(seed, Tensor):
        if not weight_vjp.fixed_size:
            return _apart(x, weight, bias, operation, weight_vjp, input_vjp, seed)
        return compiled(x, weight, bias, operation, weight_vjp, input_vjp, seed)
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{operation.title}: a captured CUDA graph would repeat one sample for ever; "
            'use torch.compile(model, mode="reduce-overhead"), which captures around the draws'
        )
    if transformed():
        raise not_transformed()
    with apart_from_modes(x, weight, bias):
        spec = operation.spec(x.shape, weight.shape)
        chosen = fastest(_call, x, weight, bias, operation, spec, weight_vjp, input_vjp)
        if chosen is not None:
            try:
                return _call(x, weight, bias, operation, spec, *chosen, seed)
            except RuntimeError as error:
                if not any(map(is_transformed, (x, weight))):
                    raise
                raise not_transformed() from error
    return operation.native(x, weight, bias)


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operation: Operation,
    spec: LayerSpec,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int,
) -> Tensor:
    y: Tensor = _Estimated.apply(x, weight, bias, graph_edge(x), operation, spec, weight_vjp, input_vjp, seed)
    return y


@graph_break("randbp: an estimator that holds a random number of entries is not compiled")
def _apart(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operation: Operation,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: Tensor,
) -> Tensor:
    return estimated(x, weight, bias, operation, weight_vjp, input_vjp, int(seed))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
