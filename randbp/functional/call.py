"""What the functions of all layers share: when to estimate, and with which seed."""

import torch
from torch import Tensor

from ..autograd import Linear, Operation, estimated
from ..estimators import Estimator
from ..estimators.base import Vjp
from ..estimators.draw import default_stream, seed_from

IntOrTuple = int | tuple[int, ...]


def call(
    operation: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    generator: torch.Generator | None,
) -> Tensor:
    """A layer with estimators: PyTorch's own where nothing is estimated."""
    check_estimator("weight_vjp", weight_vjp)
    check_estimator("input_vjp", input_vjp)
    if not is_estimated(x, weight, weight_vjp, input_vjp):
        return operation.native(x, weight, bias)
    seed = default_stream.next() if generator is None else seed_from(generator)
    return estimated_call(operation, x, weight, bias, weight_vjp, input_vjp, seed)


def estimated_call(
    operation: Operation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int,
) -> Tensor:
    """Estimated layer of checked arguments, with or without a batch dimension."""
    if x.is_complex() or weight.is_complex():
        raise ValueError(f"x: dtype {x.dtype}, expected a real floating dtype where a VJP is estimated")
    if isinstance(operation, Linear) or x.dim() == weight.dim():
        return estimated(x, weight, bias, operation, weight_vjp, input_vjp, seed)
    return estimated(x.unsqueeze(0), weight, bias, operation, weight_vjp, input_vjp, seed).squeeze(0)


def is_estimated(x: Tensor, weight: Tensor, weight_vjp: Estimator, input_vjp: Estimator) -> bool:
    """Whether backward would differ from PyTorch's in what it computes or holds."""
    if not torch.is_grad_enabled() or (weight_vjp.exact and input_vjp.exact):
        return False
    # With a frozen weight nothing of the input need be held, which PyTorch's own layer would.
    estimates_weight = not weight_vjp.exact and (weight.requires_grad or x.requires_grad)
    return estimates_weight or (not input_vjp.exact and x.requires_grad)


def check_estimator(name: Vjp, estimator: object) -> None:
    """Raise ``ValueError`` unless ``estimator`` is an estimator that serves the VJP called ``name``."""
    if not isinstance(estimator, Estimator):
        raise ValueError(f"{name}={estimator!r}: expected an estimator such as Spatial(keep=0.25) or Exact()")
    estimator.check_serves(name)


def batched_shape(x: Tensor, weight: Tensor, weight_axes: str) -> tuple[int, ...]:
    """Shape of a convolution's input, with a batch of one if it has none.

    Raises:
        ValueError: If the dimensions of input and weight do not fit a convolution.
    """
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise ValueError(f"weight: shape {tuple(weight.shape)}, expected ({weight_axes}, *K) with 1 to 3 kernel sizes")
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"x: shape {tuple(x.shape)}, expected {dims + 2} dimensions, or {dims + 1} without a batch")
    return tuple(x.shape) if x.dim() == dims + 2 else (1, *x.shape)


def as_tuple(value: IntOrTuple | list[int]) -> IntOrTuple:
    """A number as it is, a sequence as a tuple."""
    return value if isinstance(value, int) else tuple(value)
