"""A call of a layer with estimated VJPs: all that its forward and backward pass need apart from tensors."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from .._torch.dataclass_text import register
from .._torch.no_view import no_view
from ..estimators import Draw, Estimator, Exact
from ..estimators.base import Vjp
from ..layers.functions import Convolution, LayerFunction, Linear, Product, Shape, TransposedConvolution, spec_of
from ..layers.layer_specs import LayerSpec
from ..tn.execute.layer_vjps import examples_together

Tensors = tuple[Tensor, Tensor, Tensor | None]
"""Input, weight and bias."""

Pair = tuple[Estimator, Estimator]
"""The estimators of the weight VJP and of the input VJP."""

FORMATS = torch.contiguous_format, torch.channels_last
"""Memory formats of an input or weight, by whether its channels are last."""

_WEIGHT, _INPUT = 0, 1  # keys of the draws of the two VJPs


@dataclass(frozen=True)
class Call:
    """One call of a layer: its function, shapes, memory formats and estimators."""

    function: LayerFunction  # PyTorch's function with hyper-parameters
    input_shape: Shape  # as PyTorch's function takes it
    weight_shape: Shape
    weight_vjp: Estimator
    input_vjp: Estimator
    input_last: bool = False  # whether the input, and so its gradient, is in torch.channels_last memory format
    weight_last: bool = False  # the same of the weight

    @cached_property
    def spec(self) -> LayerSpec:
        """What estimators see of the layer; ``ValueError`` if shapes and hyper-parameters do not fit together."""
        return spec_of(self.function, self.input_shape, self.weight_shape)

    @cached_property
    def is_chosen_by_layer(self) -> bool:
        """Whether an estimator decides layer by layer which one serves."""
        return any(type(each).for_layer is not Estimator.for_layer for each in (self.weight_vjp, self.input_vjp))

    def using(self, weight_vjp: Estimator, input_vjp: Estimator) -> "Call":
        """The same call with other estimators."""
        return replace(self, weight_vjp=exact_or(weight_vjp), input_vjp=exact_or(input_vjp))

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """PyTorch's forward pass, bit for bit; on a CPU, large outputs are made in parts to save scratch memory.

        (Kernels with a single entry are the exception: a matrix product of fewer rows may round differently.)
        """
        spec, together = self.spec, len(x)
        if prod(spec.kernel_size) > 1:
            together = examples_together(x, weight, prod(spec.output_shape))
        if together == len(x):
            y = self.function.native(x, weight, bias)
            return no_view(y) if self.function.kind == "linear" else y
        result = x.new_empty(spec.output_shape)
        for part, made in zip(x.split(together), result.split(together), strict=True):
            made.copy_(self.function.native(part, weight, bias))
        return result

    def sketch(self, x: Tensor, seed: int) -> tuple[Tensor, ...]:
        """The tensors that the weight VJP holds of the input."""
        return self.weight_vjp.sketch(self.function.channels_second(x), self.spec, Draw(seed).child(_WEIGHT))

    @property
    def shares_sample(self) -> bool:
        """Whether one sample of the output gradient serves both VJPs."""
        key = self.weight_vjp.sample_key
        return key is not None and key == self.input_vjp.sample_key

    def both_grads(
        self, held: tuple[Tensor, ...], output_grad: Tensor, weight: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """:meth:`weight_grad` and :meth:`input_grad` of one sample."""
        sample = self.weight_vjp.sample(held, output_grad, self.spec, Draw(seed).child(_WEIGHT))
        return self.weight_grad(held, sample, seed), self.input_grad(sample, weight, seed)

    def weight_grad(self, held: tuple[Tensor, ...], output_grad: Any, seed: int) -> Tensor:
        """Estimated weight VJP in the weight's shape and memory format, from an output gradient ``[N, D, *O]``."""
        grad = self.weight_vjp.weight_vjp(held, output_grad, self.spec, Draw(seed).child(_WEIGHT))
        return grad.view(self.weight_shape).contiguous(memory_format=FORMATS[self.weight_last])

    def input_grad(self, output_grad: Any, weight: Tensor, seed: int) -> Tensor:
        """Estimated input VJP in the input's shape and memory format, from an output gradient ``[N, D, *O]``.

        The native kernel takes the memory format from the weight, the input being gone.
        """
        kernel = self.function.kernel(weight)
        if self.input_last and not self.function.is_channels_last(kernel):
            kernel = kernel.clone(memory_format=torch.channels_last)  # strides say so, also of one channel per group
        grad = self.input_vjp.input_vjp(output_grad, kernel, self.spec, Draw(seed).child(_INPUT))
        grad = self.function.channels_back(grad, self.input_shape)
        return grad.contiguous(memory_format=FORMATS[self.input_last])


for _class in (Call, Convolution, TransposedConvolution, Linear, Product):  # operators of compiled graphs read them
    register(_class)


class Engine(Protocol):
    """What computes the VJPs of a :class:`Call`: the call itself, or operators in a compiled graph."""

    @property
    def function(self) -> LayerFunction:
        """PyTorch's function with hyper-parameters."""

    @property
    def shares_sample(self) -> bool:
        """See :attr:`Call.shares_sample`."""

    def both_grads(
        self, held: tuple[Tensor, ...], output_grad: Tensor, weight: Tensor, seed: Any
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Call.both_grads`."""

    def weight_grad(self, held: tuple[Tensor, ...], output_grad: Tensor, seed: Any) -> Tensor:
        """See :meth:`Call.weight_grad`."""

    def input_grad(self, output_grad: Tensor, weight: Tensor, seed: Any) -> Tensor:
        """See :meth:`Call.input_grad`."""


def gradients(
    needed: tuple[bool, ...], engine: Engine, output_grad: Tensor, seed: Any, weight: Any, held: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of input, weight and bias, as far as they are needed."""
    grad = engine.function.channels_second(output_grad)
    bias_grad = engine.function.bias_vjp(output_grad) if needed[2] else None
    if needed[0] and needed[1] and engine.shares_sample:
        both = engine.both_grads(held, grad, weight, seed)
        return both[1], both[0], bias_grad
    # The weight's comes first: its scratch memory is gone before the input's gradient is there.
    weight_grad = engine.weight_grad(held, grad, seed) if needed[1] else None
    input_grad = engine.input_grad(grad, weight, seed) if needed[0] else None
    return input_grad, weight_grad, bias_grad


@lru_cache(maxsize=1024)
def checked_call(
    function: LayerFunction,
    input_shape: Shape,
    weight_shape: Shape,
    bias_shape: Shape | None,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    *formats: bool,
) -> Call:
    """Check and make the :class:`Call` of these arguments, once, with :class:`Exact` for those that keep everything."""
    check_estimator("weight_vjp", weight_vjp)
    check_estimator("input_vjp", input_vjp)
    call = Call(function, input_shape, weight_shape, exact_or(weight_vjp), exact_or(input_vjp), *formats)
    if bias_shape not in (None, (call.spec.out_channels,)):
        raise ValueError(f"bias: shape {tuple(bias_shape)}, expected ({call.spec.out_channels},)")
    return call


def is_estimated(x: Tensor, weight: Tensor, weight_vjp: Estimator, input_vjp: Estimator) -> bool:
    """Whether the backward pass would do anything else than PyTorch's; ``ValueError`` if so for complex tensors."""
    if not torch.is_grad_enabled() or not x.numel():
        return False
    # With a frozen weight nothing of the input need be held, which PyTorch's own layer would.
    input_grad, weight_grad = x.requires_grad, x.requires_grad or weight.requires_grad
    if not (weight_grad and not weight_vjp.exact) and not (input_grad and not input_vjp.exact):
        return False
    if x.is_complex() or weight.is_complex():
        raise ValueError(f"x: dtype {x.dtype}, expected a real floating dtype where a VJP is estimated")
    return True


def check_arguments(
    x: object, weight: object, bias: object, weight_vjp: object, input_vjp: object, generator: object
) -> None:
    """Raise ``ValueError`` unless these have the right types; bias and generator may be ``None``."""
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise ValueError(f"{name}: {type(value).__name__}, expected a torch.Tensor")
    if not isinstance(weight_vjp, Estimator) or not isinstance(input_vjp, Estimator):
        check_estimator("weight_vjp", weight_vjp)
        check_estimator("input_vjp", input_vjp)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator={generator!r}: expected a torch.Generator or None")


def check_estimator(name: Vjp, estimator: object) -> None:
    """Raise ``ValueError`` unless ``estimator`` is an estimator that serves the VJP called ``name``."""
    if not isinstance(estimator, Estimator):
        raise ValueError(f"{name}={estimator!r}: expected an estimator such as Spatial(keep=0.25) or Exact()")
    estimator.check_serves(name)


def exact_or(estimator: Estimator) -> Estimator:
    """Replace an estimator that keeps everything by :class:`Exact`."""
    return Exact() if estimator.exact else estimator
