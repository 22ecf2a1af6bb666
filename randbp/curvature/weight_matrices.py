"""PyTorch's layers in terms of :mod:`randbp.tn`: specs of calls, and parameters as one matrix per group."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..layers import LayerCall, kind_of
from ..layers.functions import Kind, TransposedConvolution, spec_of
from ..tn import LayerSpec


@dataclass(frozen=True)
class Form:
    """The form of a layer's weight as one matrix per group: ``[D / G, C / G·ΠK]``, with the bias as one more column.

    Example:
        >>> form = Form.of(torch.nn.Conv2d(4, 6, 3, groups=2))
        >>> form, form.shape((6, 2, 3, 3), bias=True)
        (Form(kind='convolution', groups=2), (2, 3, 19))
    """

    kind: Kind
    groups: int = 1

    @classmethod
    def of(cls, module: Any) -> "Form":
        """The form of one of PyTorch's layers."""
        function = kind_of(module)
        assert function is not None
        return cls(function.kind, getattr(module, "groups", 1))

    @property
    def is_transposed(self) -> bool:
        """Whether the weight stores input channels first."""
        return self.kind == "transposed convolution"

    def shape(self, weight: tuple[int, ...], bias: bool) -> tuple[int, int, int]:
        """``(G, rows, columns)`` for a weight of this shape."""
        outer, inner = weight[0] // self.groups, weight[1]
        if self.is_transposed:
            outer, inner = inner, outer
        return self.groups, outer, inner * prod(weight[2:]) + bias


def layer_call(module: Any, input: Tensor, output: Tensor) -> LayerCall:
    """A call of one of PyTorch's layers as one of its layer function."""
    kind = kind_of(module)
    assert kind is not None
    more = [list(output.shape)] if kind is TransposedConvolution else []
    prepared = kind.of_module(module, module.weight, input, *more) or kind.of_module(module, module.weight, input)
    function, input = prepared or (kind(), input)
    return LayerCall(function, input, module.weight, module.bias, lambda: output)


def call_input(call: LayerCall) -> tuple[Form, LayerSpec, Tensor]:
    """The form of weight, the spec and the input ``[N, C, *I]`` of one call of a layer function.

    Example:
        >>> layer, x = torch.nn.Linear(3, 4), torch.zeros(8, 5, 3)
        >>> form, spec, seen = call_input(layer_call(layer, x, layer(x)))
        >>> form, spec.input_shape, seen.shape
        (Form(kind='linear', groups=1), (8, 3, 5), torch.Size([8, 3, 5]))
    """
    function = call.function
    spec = spec_of(function, call.input.shape, call.weight.shape)
    return Form(function.kind, function.groups), spec, function.channels_second(call.input).reshape(spec.input_shape)


def as_matrices(form: Form, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight and bias, or their gradients, as ``[G, D / G, C / G·ΠK (+ 1)]``: the bias is the last column.

    Rows and columns are in the order of :func:`~randbp.curvature.output_grad_factor` and
    :func:`~randbp.curvature.input_factor`.
    """
    grouped = weight.unflatten(0, (form.groups, -1))
    matrices = (grouped.transpose(1, 2) if form.is_transposed else grouped).flatten(2)
    return matrices if bias is None else torch.cat([matrices, bias.view(*matrices.shape[:2], 1)], 2)


def from_matrices(form: Form, matrices: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Inverse of :func:`as_matrices`, for a weight of this shape."""
    inner = shape[0] // form.groups if form.is_transposed else shape[1]
    weight, bias = matrices.tensor_split([inner * prod(shape[2:])], dim=2)
    grouped = weight.reshape(*weight.shape[:2], inner, *shape[2:])
    grouped = grouped.transpose(1, 2) if form.is_transposed else grouped
    return grouped.reshape(shape), bias.reshape(-1) if bias.shape[2] else None
