"""A layer with estimated VJPs inside a graph of ``torch.compile``.

The forward pass is PyTorch's own and stays visible to the compiler. The work of an estimator is done by opaque
operators: ``randbp::sketch``, ``randbp::weight_vjp``, ``randbp::input_vjp``. They take the :class:`Call` as text, and
the seed as a tensor on the CPU, which ``randbp::next_seed`` draws in the graph, so that every step has its own sample.
Sizes of what is held follow from shapes, so each shape of the input is compiled on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor

from .._torch.clean_thread import without_modes
from .._torch.dataclass_text import from_text, to_text
from ..draws.seeds import DRAWS_ON_HOST
from ..layers.functions import LayerFunction, Shape
from .call import FORMATS, Call, Pair, Tensors, exact_or, gradients


@torch.library.custom_op("randbp::sketch", mutates_args=(), tags=DRAWS_ON_HOST)
def _sketch(x: Tensor, seed: Tensor, call: str) -> list[Tensor]:
    made: Call = from_text(call)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        held = made.sketch(x, int(seed))
    plain = [tensor.contiguous() for tensor in held]
    # An operator may not return its argument, which is what an exact VJP holds.
    return [tensor.clone() if tensor.data_ptr() == x.data_ptr() else tensor for tensor in plain]


@_sketch.register_fake
def _(x: Tensor, seed: Tensor, call: str) -> list[Tensor]:
    return [x.new_empty(shape, dtype=dtype) for shape, dtype in _held(call, x.dtype, x.device)]


@torch.library.custom_op("randbp::weight_vjp", mutates_args=(), tags=DRAWS_ON_HOST)
def _weight_vjp(held: Sequence[Tensor], output_grad: Tensor, seed: Tensor, call: str) -> Tensor:
    made: Call = from_text(call)
    with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
        return made.weight_grad(tuple(held), output_grad, int(seed))


@_weight_vjp.register_fake
def _(held: Sequence[Tensor], output_grad: Tensor, seed: Tensor, call: str) -> Tensor:
    made: Call = from_text(call)
    return torch.empty_like(output_grad.new_empty(made.weight_shape), memory_format=FORMATS[made.weight_last])


@torch.library.custom_op("randbp::input_vjp", mutates_args=(), tags=DRAWS_ON_HOST)
def _input_vjp(output_grad: Tensor, weight: Tensor, seed: Tensor, call: str) -> Tensor:
    made: Call = from_text(call)
    with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
        return made.input_grad(output_grad, weight, int(seed))


@_input_vjp.register_fake
def _(output_grad: Tensor, weight: Tensor, seed: Tensor, call: str) -> Tensor:
    made: Call = from_text(call)
    return torch.empty_like(output_grad.new_empty(made.input_shape), memory_format=FORMATS[made.input_last])


@torch.library.custom_op("randbp::both_vjps", mutates_args=(), tags=DRAWS_ON_HOST)
def _both_vjps(
    held: Sequence[Tensor], output_grad: Tensor, weight: Tensor, seed: Tensor, call: str
) -> tuple[Tensor, Tensor]:
    made: Call = from_text(call)
    with torch.no_grad(), torch.autocast(output_grad.device.type, enabled=False):
        return made.both_grads(tuple(held), output_grad, weight, int(seed))


@_both_vjps.register_fake
def _(held: Sequence[Tensor], output_grad: Tensor, weight: Tensor, seed: Tensor, call: str) -> tuple[Tensor, Tensor]:
    return _weight_vjp(held, output_grad, seed, call), _input_vjp(output_grad, weight, seed, call)


@lru_cache(maxsize=1024)
def _held(call: str, dtype: torch.dtype, device: torch.device) -> tuple[tuple[Shape, torch.dtype], ...]:
    """Shapes and dtypes of a sketch, found by running it on tensors without data.

    It runs outside of the modes in which the compiler traces.
    """

    def run() -> tuple[tuple[Shape, torch.dtype], ...]:
        made: Call = from_text(call)
        chosen = made.weight_vjp.for_layer("weight_vjp", made.spec, dtype, device)
        x = torch.empty(made.input_shape, dtype=dtype, device="meta")
        return tuple((tuple(held.shape), held.dtype) for held in made.using(chosen, made.input_vjp).sketch(x, 0))

    return without_modes(run)


@dataclass(frozen=True)
class _Operators:
    """The operators of a call, in place of its own methods."""

    function: LayerFunction
    call: str
    holds_input: bool  # since an operator may not return its argument
    shares_sample: bool

    def both_grads(
        self, held: tuple[Tensor, ...], output_grad: Tensor, weight: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _both_vjps(held, output_grad, weight, seed, self.call)

    def weight_grad(self, held: tuple[Tensor, ...], output_grad: Tensor, seed: Tensor) -> Tensor:
        return _weight_vjp(held, output_grad, seed, self.call)

    def input_grad(self, output_grad: Tensor, weight: Tensor, seed: Tensor) -> Tensor:
        return _input_vjp(output_grad, weight, seed, self.call)


class _Compiled(torch.autograd.Function):
    """The counterpart of the eager autograd function, made of operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, engine: _Operators) -> Tensor:
        output = engine.function.native(x, weight, bias)
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        held: Sequence[Tensor] = ()
        if needs_weight:
            held = (x,) if engine.holds_input else _sketch(x, seed, engine.call)
        ctx.save_for_backward(*((seed, weight, *held) if needs_input else (seed, *held)))
        ctx.engine = engine
        return output

    @staticmethod
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed, *held), weight, engine = ctx.saved_tensors, None, ctx.engine
        if ctx.needs_input_grad[0]:
            weight, *held = held
        if ctx.needs_input_grad[1] and engine.holds_input:
            held = [engine.function.channels_second(held[0])]
        return (*gradients(ctx.needs_input_grad, engine, output_grad, seed, weight, held), None, None)


def compiled(function: LayerFunction, tensors: Tensors, estimators: Pair, seed: int | Tensor) -> Tensor:
    """Run a layer with estimated VJPs while ``torch.compile`` traces it; see :func:`estimated`."""
    x, weight, _ = tensors
    shapes = tuple(map(index, x.shape)), tuple(map(index, weight.shape))  # a symbolic size becomes a number here
    formats = function.is_channels_last(x), function.is_channels_last(weight)
    call = Call(function, *shapes, exact_or(estimators[0]), exact_or(estimators[1]), *formats)
    engine = _Operators(function, to_text(call), call.weight_vjp.holds_input, call.shares_sample)
    output: Tensor = _Compiled.apply(*tensors, seed, engine)
    return output
