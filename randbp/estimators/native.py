"""PyTorch's own VJPs of a convolution, one at a time."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tn import ConvSpec


def native_weight_vjp(input: Tensor, output_grad: Tensor, spec: ConvSpec) -> Tensor:
    """The exact weight VJP ``[D, C / G, *K]``, by the kernel that PyTorch's autograd calls."""
    symmetric, extra = _split_padding(spec)
    if any(extra):
        input = F.pad(input, extra)
    placeholder = input.new_empty(1).expand(spec.weight_shape)
    if _channels_last(input):
        placeholder = output_grad.new_empty(spec.weight_shape).contiguous(memory_format=torch.channels_last)
    return _backward(output_grad, input, placeholder, spec, symmetric, 1)


def native_input_vjp(output_grad: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    """The exact input VJP ``[N, C, *I]``, by the kernel that PyTorch's autograd calls.

    It needs the input's shape but not its values.
    """
    symmetric, extra = _split_padding(spec)
    shape = list(spec.input_shape)
    for dim in range(spec.dims):
        shape[-1 - dim] += extra[2 * dim] + extra[2 * dim + 1]
    placeholder = output_grad.new_empty(shape)  # anything but plain memory would be copied
    result = _backward(output_grad, placeholder, weight, spec, symmetric, 0)
    return F.pad(result, [-side for side in extra]) if any(extra) else result


def _split_padding(spec: ConvSpec) -> tuple[list[int], list[int]]:
    """Padding that both sides share, and what is left in the order of ``F.pad`` (last dimension first)."""
    symmetric = [min(pair) for pair in spec.padding]
    extra = [side - min(pair) for pair in reversed(spec.padding) for side in pair]
    return symmetric, extra


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _backward(
    output_grad: Tensor, input: Tensor, weight: Tensor, spec: ConvSpec, padding: list[int], wanted: int
) -> Tensor:
    grads = torch.ops.aten.convolution_backward(
        output_grad,
        input,
        weight,
        None,
        list(spec.stride),
        padding,
        list(spec.dilation),
        False,
        [0] * spec.dims,
        spec.groups,
        [wanted == 0, wanted == 1, False],
    )
    return cast(Tensor, grads[wanted])
