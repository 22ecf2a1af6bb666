"""PyTorch's own VJPs of a layer, one at a time."""

from math import prod
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ...layers.layer_specs import ConvTransposeSpec, LayerSpec, LinearSpec
from ...layers.spec import ConvSpec
from .convolution_kernels import memory_format_of, placeholder

LARGE = 2**21
"""Results of at least this size are computed in parts, to save memory [entries]."""


def native_weight_vjp(input: Tensor, output_grad: Tensor, spec: LayerSpec) -> Tensor:
    """The exact weight VJP of any number of examples, by the kernel that PyTorch's autograd calls."""
    if isinstance(spec, LinearSpec):
        return (_rows(output_grad).t() @ _rows(input)).unsqueeze(2)
    extra = _extra_padding(spec)
    if any(extra):
        input = F.pad(input, extra)
    weight = placeholder(input, spec.weight_shape, memory_format_of(input), dense=False)
    return _backward(output_grad, input, weight, spec, 1)


def native_input_vjp(output_grad: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """The exact input VJP ``[N, C, *I]``, by the kernel that PyTorch's autograd calls.

    It needs the input's shape but not its values.
    """
    if isinstance(spec, LinearSpec):
        return (_rows(output_grad) @ weight[..., 0]).unflatten(0, (-1, *spec.input_size)).movedim(-1, 1)
    extra, shape = _extra_padding(spec), list(spec.input_shape)
    for dim in range(spec.dims):
        shape[-1 - dim] += sum(extra[2 * dim : 2 * dim + 2])
    together = examples_together(output_grad, weight, prod(shape))
    if together < len(output_grad):
        result = output_grad.new_empty((len(output_grad), *shape[1:]))
        for part, made in zip(output_grad.split(together), result.split(together), strict=True):
            made.copy_(_backward(part, made, weight, spec, 0))
    else:
        result = _backward(output_grad, placeholder(output_grad, (together, *shape[1:])), weight, spec, 0)
    return F.pad(result, [-side for side in extra]) if any(extra) else result


def examples_together(given: Tensor, weight: Tensor, elements: int) -> int:
    """Examples per call: on a CPU, a native kernel holds a second copy of its results in another memory order."""
    plain = given.device.type == "cpu" and given.is_contiguous() and weight.is_contiguous()
    if not plain or elements < LARGE:
        return len(given)
    return max(-(-len(given) // 16), min(len(given), torch.get_num_threads()))


def _rows(tensor: Tensor) -> Tensor:
    """``[N, C, P]`` as ``[N·P, C]``, a view if channels are innermost in memory."""
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def _extra_padding(spec: LayerSpec) -> list[int]:
    """Padding that only one side of the input has, in the order of ``F.pad`` (last dimension first)."""
    if isinstance(spec, ConvTransposeSpec):
        return []
    return [side - min(pair) for pair in reversed(spec.padding) for side in pair]


def _backward(output_grad: Tensor, input: Tensor, weight: Tensor, spec: LayerSpec, wanted: int) -> Tensor:
    transposed = isinstance(spec, ConvTransposeSpec)
    conv = cast(ConvSpec, spec.adjoint if isinstance(spec, ConvTransposeSpec) else spec)
    padding = [left if transposed else min(left, right) for left, right in conv.padding]
    grads = torch.ops.aten.convolution_backward(
        output_grad,
        input,
        weight,
        None,
        list(conv.stride),
        padding,
        list(conv.dilation),
        transposed,
        _output_padding(conv) if transposed else [0] * conv.dims,
        conv.groups,
        [wanted == 0, wanted == 1, False],
    )
    return cast(Tensor, grads[wanted])


def _output_padding(adjoint: ConvSpec) -> list[int]:
    """Difference between a transposed convolution's output size and the smallest one that fits its input."""
    return [
        p.input_size - ((p.output_size - 1) * p.stride - 2 * p.padding + p.dilation * (p.kernel_size - 1) + 1)
        for p in adjoint.patterns
    ]
