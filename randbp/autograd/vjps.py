"""The computations in forward and backward of an estimated layer, shared by eager mode and compiled graphs."""

from math import prod

import torch
from torch import Tensor

from ..estimators import Draw, Estimator, Exact
from ..estimators.native import examples_together
from ..tn import LayerSpec
from .operations import Linear, Operation, Shape

_WEIGHT, _INPUT = 0, 1  # keys of the draws of the two VJPs


def output(x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation, spec: LayerSpec) -> Tensor:
    """PyTorch's forward pass, bit for bit; on a CPU, large outputs are made a few examples at a time to save scratch.

    (Kernels with a single entry are the exception: a matrix product of fewer rows may round differently.)
    """
    whole = x.dim() != len(spec.input_shape) or prod(spec.kernel_size) == 1
    together = len(x) if whole else examples_together(x, weight, prod(spec.output_shape))
    if whole or together == len(x):
        return operation.native(x, weight, bias)
    result = x.new_empty(spec.output_shape)
    for part, made in zip(x.split(together), result.split(together), strict=True):
        made.copy_(operation.native(part, weight, bias))
    return result


def sketch(x: Tensor, operation: Operation, spec: LayerSpec, estimator: Estimator, seed: int) -> tuple[Tensor, ...]:
    """The tensors that the weight VJP holds of a layer's input."""
    return _exact_or(estimator).sketch(operation.channels_second(x), spec, Draw(seed).child(_WEIGHT))


def weight_vjp(
    held: tuple[Tensor, ...],
    output_grad: Tensor,
    weight_shape: Shape,
    spec: LayerSpec,
    estimator: Estimator,
    seed: int,
    memory_format: torch.memory_format,
) -> Tensor:
    """Estimated weight VJP in the weight's shape and memory format, from an output gradient ``[N, D, *O]``."""
    grad = _exact_or(estimator).weight_vjp(held, output_grad, spec, Draw(seed).child(_WEIGHT))
    return grad.view(weight_shape).contiguous(memory_format=memory_format)


def input_vjp(
    output_grad: Tensor,
    weight: Tensor,
    input_shape: Shape,
    operation: Operation,
    spec: LayerSpec,
    estimator: Estimator,
    seed: int,
    memory_format: torch.memory_format,
) -> Tensor:
    """Estimated input VJP in the input's shape and memory format, from an output gradient ``[N, D, *O]``.

    The native kernel takes the memory format from the weight, the input being gone.
    """
    kernel = operation.kernel(weight)
    if memory_format is torch.channels_last and memory_format_of(kernel, operation) is not memory_format:
        kernel = kernel.clone(memory_format=memory_format)  # with strides that say so, also of one channel per group
    grad = _exact_or(estimator).input_vjp(output_grad, kernel, spec, Draw(seed).child(_INPUT))
    return operation.channels_back(grad, input_shape).contiguous(memory_format=memory_format)


def bias_vjp(output_grad: Tensor, operation: Operation) -> Tensor:
    """Exact bias VJP, from an output gradient as PyTorch's function returned the output.

    For linear layers it is PyTorch's bit for bit. Of a convolution in single precision PyTorch's processor kernel makes
    it along with the weight VJP, at that price; a sum of its own may differ in the last bit.
    """
    if isinstance(operation, Linear):
        return output_grad.reshape(-1, output_grad.shape[-1]).sum(0)
    return output_grad.sum([dim for dim in range(output_grad.dim()) if dim != 1])


def memory_format_of(tensor: Tensor, operation: Operation) -> torch.memory_format:
    """``torch.channels_last`` if an input or weight has that memory format, else ``torch.contiguous_format``."""
    if isinstance(operation, Linear) or tensor.dim() != 4:
        return torch.contiguous_format
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _exact_or(estimator: Estimator) -> Estimator:
    """Replace an estimator that keeps everything by :class:`Exact`."""
    return Exact() if estimator.exact else estimator
