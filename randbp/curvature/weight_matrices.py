"""PyTorch's layers in terms of :mod:`randbp.tn`: specs of calls, and parameters as one matrix per group."""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import Kind, LayerCall, kind_of
from ..layers.integers import as_integer
from ..layers.layer_specs import as_sequence
from ..tn import ConvSpec, ConvTransposeSpec, LayerSpec, linear_spec, transposed_spec

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Form:
    """The form of a layer's weight as one matrix per group: ``[D / G, C / G·ΠK]``, with the bias as one more column.

    Example:
        >>> form = Form.of(nn.Conv2d(4, 6, 3, groups=2))
        >>> form, form.shape((6, 2, 3, 3), bias=True)
        (Form(kind='convolution', groups=2), (2, 3, 19))
    """

    kind: Kind
    groups: int = 1

    @classmethod
    def of(cls, module: Any) -> "Form":
        """The form of one of PyTorch's layers."""
        kind = kind_of(module)
        assert kind is not None
        return cls(kind, 1 if kind == "linear" else module.groups)

    def shape(self, weight: tuple[int, ...], bias: bool) -> tuple[int, int, int]:
        """``(G, rows, columns)`` for a weight of this shape."""
        outer, inner = weight[0] // self.groups, weight[1]
        if self.kind == "transposed convolution":
            outer, inner = inner, outer
        return self.groups, outer, inner * prod(weight[2:]) + bias


def layer_input(module: Any, input: Tensor, output: Tensor) -> tuple[LayerSpec, Tensor]:
    """The spec of one call of a module, and its input ``[N, C, *I]``.

    Args:
        module: One of ``LAYERS``.
        input: The argument of the call.
        output: The result of the call: the output size of a transposed convolution may be an argument.

    Example:
        >>> layer, x = nn.Linear(3, 4), torch.zeros(8, 5, 3)
        >>> spec, seen = layer_input(layer, x, layer(x))
        >>> spec.input_shape, seen.shape
        ((8, 3, 5), torch.Size([8, 3, 5]))
    """
    if isinstance(module, nn.Linear):
        return _call(Form("linear"), tuple(module.weight.shape), (), input, output)
    form, padding = Form.of(module), module.padding
    input = channels_second(module, input)
    if module.padding_mode != "zeros" and padding != "valid":
        input, padding = F.pad(input, pad_widths(module), mode=module.padding_mode), 0
    geometry = module.stride, padding, module.dilation
    return _call(form, tuple(module.weight.shape), geometry, input, output)


def call_input(call: LayerCall, output: Tensor) -> tuple[Form, LayerSpec, Tensor]:
    """The spec, input and form of weight of one call of a layer function.

    Example:
        >>> x, weight = torch.zeros(8, 3, 5), torch.zeros(4, 3, 2)
        >>> run = lambda: F.conv1d(x, weight, dilation=2)
        >>> call = LayerCall("convolution", x, weight, None, (1, 0, 2, 1), False, run)
        >>> form, spec, seen = call_input(call, run())
        >>> form, spec.output_shape
        (Form(kind='convolution', groups=1), (8, 4, 3))
    """
    form, geometry = Form("linear"), tuple[Any, ...]()
    if call.kind == "convolution":
        stride, padding, dilation, groups = call.geometry
        form, geometry = Form(call.kind, int(groups)), (stride, padding, dilation)
    elif call.kind == "transposed convolution":
        stride, padding, _, groups, dilation = call.geometry
        form, geometry = Form(call.kind, int(groups)), (stride, padding, dilation)
    return form, *_call(form, tuple(call.weight.shape), geometry, call.input, output)


def _call(
    form: Form, weight: tuple[int, ...], geometry: tuple[Any, ...], input: Tensor, output: Tensor
) -> tuple[LayerSpec, Tensor]:
    if form.kind == "linear":
        return _linear_spec(tuple(input.shape), weight[0]), as_sequence(input)
    input, output = (_channels_second(form.kind, len(weight), each) for each in (input, output))
    dims, kernel = len(weight) - 2, weight[2:]
    stride, padding, dilation = (_each(value, dims) for value in geometry)
    if form.kind == "convolution":
        return _conv_spec(tuple(input.shape), weight[0], kernel, stride, padding, dilation, form.groups), input
    sizes = zip(input.shape[2:], output.shape[2:], stride, padding, dilation, kernel, strict=True)
    extra = tuple(out - ((i - 1) * s - 2 * p + d * (k - 1) + 1) for i, out, s, p, d, k in sizes)
    shape = tuple(input.shape)
    return _transposed_spec(
        shape, weight[1] * form.groups, kernel, stride, padding, dilation, form.groups, extra
    ), input


def _each(value: Any, dims: int) -> Any:
    """Expand a number, or a sequence of one number, to one number per dimension, as PyTorch's functions do."""
    if isinstance(value, str):
        return value
    number = as_integer(value)
    if number is not None:
        return (number,) * dims
    numbers = tuple(int(each) for each in value)
    return numbers * dims if len(numbers) == 1 else numbers


def pad_widths(module: Any) -> list[int]:
    """Widths for ``F.pad`` (last dimension first) that pad as a convolution with a non-zero padding mode does.

    Example:
        >>> pad_widths(nn.Conv2d(2, 2, (3, 2), padding="same", padding_mode="circular"))
        [0, 1, 1, 1]
    """
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [side for width in reversed(module.padding) for side in (width, width)]


def channels_second(module: nn.Module, tensor: Tensor) -> Tensor:
    """A module's input or output as ``[N, C, *positions]``; a call without a batch is a batch of one."""
    kind = kind_of(module)
    assert kind is not None
    return _channels_second(kind, module.weight.dim(), tensor)  # type: ignore[operator]


def _channels_second(kind: Kind, dims: int, tensor: Tensor) -> Tensor:
    if kind == "linear":
        return as_sequence(tensor)
    return tensor if tensor.dim() == dims else tensor.unsqueeze(0)


def as_matrices(layer: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight and bias, or their gradients, as ``[G, D / G, C / G·ΠK (+ 1)]``: the bias is the last column.

    Rows and columns are in the order of :func:`~randbp.curvature.output_grad_factor` and
    :func:`~randbp.curvature.input_factor`.

    Args:
        layer: A module, or the form of its weight.
        weight: The weight in PyTorch's layout.
        bias: ``[D]``.
    """
    matrices = _grouped(_form(layer), weight).flatten(2)
    return matrices if bias is None else torch.cat([matrices, bias.view(*matrices.shape[:2], 1)], 2)


def from_matrices(layer: Any, matrices: Tensor, shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor | None]:
    """Inverse of :func:`as_matrices`, for a weight of this shape (a module knows its own)."""
    form = _form(layer)
    shape = tuple(layer.weight.shape) if shape is None else shape
    transposed = form.kind == "transposed convolution"
    inner = shape[0] // form.groups if transposed else shape[1]
    weight, bias = matrices.tensor_split([inner * prod(shape[2:])], dim=2)
    grouped = weight.reshape(*weight.shape[:2], inner, *shape[2:])
    if transposed:
        grouped = grouped.transpose(1, 2)
    return grouped.reshape(shape), bias.reshape(-1) if bias.shape[2] else None


def _grouped(form: Form, weight: Tensor) -> Tensor:
    """``[G, D / G, C / G, *K]``."""
    grouped = weight.unflatten(0, (form.groups, -1))
    return grouped.transpose(1, 2) if form.kind == "transposed convolution" else grouped


def _form(layer: Any) -> Form:
    return layer if isinstance(layer, Form) else Form.of(layer)


_conv_spec = lru_cache(maxsize=1024)(ConvSpec)
_linear_spec = lru_cache(maxsize=1024)(linear_spec)


@lru_cache(maxsize=1024)
def _transposed_spec(*arguments: Any) -> ConvTransposeSpec:
    return ConvTransposeSpec(transposed_spec(*arguments))
