"""A layer with estimated VJPs inside a graph of ``torch.compile``.

The forward pass is PyTorch's own and stays visible to the compiler. The work of an estimator is done by opaque
operators: ``randbp::sketch``, ``randbp::weight_vjp``, ``randbp::input_vjp``. They take layers and estimators as text,
and the seed as a tensor on the CPU, which ``randbp::next_seed`` draws in the graph, so that every step has its own
sample. Sizes of what is held follow from shapes, so each shape of the input is compiled on its own.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .._torch.clean_thread import without_modes
from ..draws.seeds import next_seed
from ..estimators import Estimator
from ..estimators.text import from_text, to_text
from . import vjps
from .operations import Operation, Shape

# What draws on the host must not be recorded into a CUDA graph, which would repeat one sample for ever.
_TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("randbp::next_seed", mutates_args={"place"}, tags=_TAGS)
def draw_seed(clock: Tensor, place: Tensor) -> Tensor:
    """Do what :func:`randbp.draws.seeds.next_seed` does, on tensors of the CPU."""
    values = place.tolist()
    seed = next_seed(clock.tolist(), values)
    place.copy_(torch.tensor(values))
    return torch.tensor(seed)


@draw_seed.register_fake
def _(clock: Tensor, place: Tensor) -> Tensor:
    return clock.new_empty(())


@torch.library.custom_op("randbp::sketch", mutates_args=(), tags=_TAGS)
def _sketch(x: Tensor, seed: Tensor, weight_shape: Sequence[int], operation: str, estimator: str) -> list[Tensor]:
    made: Operation = from_text(operation)
    spec = made.spec(tuple(x.shape), tuple(weight_shape))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        held = vjps.sketch(x, made, spec, from_text(estimator), int(seed))
    plain = [tensor.contiguous() for tensor in held]
    # An operator may not return its argument, which is what an exact VJP holds.
    return [tensor.clone() if tensor.data_ptr() == x.data_ptr() else tensor for tensor in plain]


@_sketch.register_fake
def _(x: Tensor, seed: Tensor, weight_shape: Sequence[int], operation: str, estimator: str) -> list[Tensor]:
    sizes = tuple(map(int, x.shape)), tuple(map(int, weight_shape))  # a symbolic size becomes a number here
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in _held(operation, estimator, *sizes, x.dtype, x.device)]


@torch.library.custom_op("randbp::weight_vjp", mutates_args=(), tags=_TAGS)
def _weight_vjp(
    held: Sequence[Tensor],
    output_grad: Tensor,
    seed: Tensor,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    operation: str,
    estimator: str,
    channels_last: bool,
) -> Tensor:
    made, shape = from_text(operation), tuple(weight_shape)
    spec, grad = made.spec(tuple(input_shape), shape), made.channels_second(output_grad)
    with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
        return vjps.weight_vjp(tuple(held), grad, shape, spec, from_text(estimator), int(seed), _format(channels_last))


@_weight_vjp.register_fake
def _(
    held: Sequence[Tensor],
    output_grad: Tensor,
    seed: Tensor,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    operation: str,
    estimator: str,
    channels_last: bool,
) -> Tensor:
    return torch.empty_like(output_grad.new_empty(tuple(weight_shape)), memory_format=_format(channels_last))


@torch.library.custom_op("randbp::input_vjp", mutates_args=(), tags=_TAGS)
def _input_vjp(
    output_grad: Tensor,
    weight: Tensor,
    seed: Tensor,
    input_shape: Sequence[int],
    operation: str,
    estimator: str,
    channels_last: bool,
) -> Tensor:
    made, shape = from_text(operation), tuple(input_shape)
    spec, grad = made.spec(shape, tuple(weight.shape)), made.channels_second(output_grad)
    with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
        return vjps.input_vjp(grad, weight, shape, made, spec, from_text(estimator), int(seed), _format(channels_last))


@_input_vjp.register_fake
def _(
    output_grad: Tensor,
    weight: Tensor,
    seed: Tensor,
    input_shape: Sequence[int],
    operation: str,
    estimator: str,
    channels_last: bool,
) -> Tensor:
    return torch.empty_like(output_grad.new_empty(tuple(input_shape)), memory_format=_format(channels_last))


class _Compiled(torch.autograd.Function):
    """The counterpart of the eager autograd function, made of operators."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seed: Tensor,
        operation: Operation,
        layer: str,
        weight_estimator: str,
        input_estimator: str,
        holds_input: bool,
    ) -> Tensor:
        output = operation.native(x, weight, bias)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        held: Sequence[Tensor] = ()
        if needs_weight:  # an operator may not return its argument
            held = (x,) if holds_input else _sketch(x, seed, weight.shape, layer, weight_estimator)
        ctx.save_for_backward(*((seed, weight, *held) if needs_input else (seed, *held)))
        ctx.operation, ctx.layer, ctx.shapes = operation, layer, (x.shape, weight.shape)
        ctx.weight_estimator, ctx.input_estimator = weight_estimator, input_estimator
        formats = vjps.memory_format_of(x, operation), vjps.memory_format_of(weight, operation)
        ctx.x_last, ctx.weight_last = (each == torch.channels_last for each in formats)
        ctx.holds_input = holds_input
        return output

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, *held = ctx.saved_tensors
        input_shape, weight_shape = ctx.shapes
        input_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            weight, *held = held
            input_grad = _input_vjp(output_grad, weight, seed, input_shape, ctx.layer, ctx.input_estimator, ctx.x_last)
        if ctx.needs_input_grad[1]:
            if ctx.holds_input:
                held = [ctx.operation.channels_second(held[0])]
            weight_grad = _weight_vjp(
                held, output_grad, seed, input_shape, weight_shape, ctx.layer, ctx.weight_estimator, ctx.weight_last
            )
        if ctx.needs_input_grad[2]:
            bias_grad = vjps.bias_vjp(output_grad, ctx.operation)
        return input_grad, weight_grad, bias_grad, None, None, None, None, None, None


def compiled(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    operation: Operation,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: Tensor,
) -> Tensor:
    """Run a layer with estimated VJPs while ``torch.compile`` traces it; see :func:`estimated`."""
    texts = to_text(operation), to_text(weight_vjp), to_text(input_vjp)
    output: Tensor = _Compiled.apply(x, weight, bias, seed, operation, *texts, weight_vjp.exact)
    return output


@lru_cache(maxsize=1024)
def _held(
    operation: str, estimator: str, input_shape: Shape, weight_shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Shape, torch.dtype], ...]:
    """Shapes and dtypes of a sketch, found by running it on tensors without data.

    It runs outside of the modes in which the compiler traces.
    """

    def run() -> tuple[tuple[Shape, torch.dtype], ...]:
        made: Operation = from_text(operation)
        x = torch.empty(input_shape, dtype=dtype, device="meta")
        spec = made.spec(input_shape, weight_shape)
        chosen = from_text(estimator).for_layer("weight_vjp", spec, dtype, device)
        return tuple((tuple(tensor.shape), tensor.dtype) for tensor in vjps.sketch(x, made, spec, chosen, 0))

    return without_modes(run)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
