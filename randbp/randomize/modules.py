"""Operations from layers' calls: those of modules by their attributes, those of functions by their arguments."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..autograd import Linear, Operation, Product
from ..curvature.weight_matrices import pad_widths
from ..functional import conv_operation, conv_transpose_operation
from ..layers import Kind, LayerCall

Prepare = Callable[..., tuple[Operation, Tensor] | None]


def _convolution(module: Any, weight: Tensor, input: Tensor) -> tuple[Operation, Tensor] | None:
    padding = module.padding
    if module.padding_mode != "zeros" and padding != "valid":
        input = F.pad(input, pad_widths(module), mode=module.padding_mode)
        padding = (0,) * len(module.kernel_size)
    return conv_operation(module.stride, padding, module.dilation, module.groups), input


def _transposed(
    module: Any, weight: Tensor, input: Tensor, output_size: list[int] | None = None
) -> tuple[Operation, Tensor] | None:
    extra: tuple[int, ...] = module.output_padding
    if output_size is not None:
        dims = len(module.kernel_size)
        geometry = zip(
            input.shape[-dims:], module.stride, module.padding, module.dilation, module.kernel_size, strict=True
        )
        least = [(i - 1) * s - 2 * p + d * (k - 1) + 1 for i, s, p, d, k in geometry]
        extra = tuple(wanted - size for wanted, size in zip(list(output_size)[-dims:], least, strict=True))
        sizes = len(output_size) in (dims, input.dim())
        if not sizes or not all(0 <= e < s for e, s in zip(extra, module.stride, strict=True)):
            return None
    return conv_transpose_operation(module.stride, module.padding, extra, module.groups, module.dilation), input


def _linear(module: Any, weight: Tensor, input: Tensor) -> tuple[Operation, Tensor] | None:
    if not input.numel() or not weight.numel() or input.shape[-1] != weight.shape[1]:
        return None
    return Linear(), input


PREPARE: dict[Kind, Prepare] = {
    "convolution": _convolution,
    "transposed convolution": _transposed,
    "linear": _linear,
}
"""By kind of layer, a function of a module, its weight and its arguments. It returns the operation and its input, or
``None`` if PyTorch's own forward pass should run: nothing is to be estimated, or PyTorch should raise its error."""


def operation_of(call: LayerCall) -> Operation:
    """The operation of a call of one of PyTorch's layer functions."""
    if call.kind == "convolution":
        return conv_operation(*call.geometry)
    if call.kind == "transposed convolution":
        return conv_transpose_operation(*call.geometry)
    return Product() if call.product else Linear()
