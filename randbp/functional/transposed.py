"""Transposed convolution with estimated VJPs."""

from functools import lru_cache

import torch
from torch import Tensor

from ..autograd import TransposedConvolution
from ..estimators import Estimator, Exact, Spatial
from ..tn import ConvTransposeSpec, transposed_spec
from .call import IntOrTuple, as_tuple, batched_shape, call


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple = 0,
    output_padding: IntOrTuple = 0,
    groups: int = 1,
    dilation: IntOrTuple = 1,
    *,
    weight_vjp: Estimator = Spatial(keep=0.25),  # noqa: B008 -- a frozen value
    input_vjp: Estimator = Exact(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Tensor:
    """Transposed convolution in one, two or three dimensions: forward exact, backward estimated.

    ``Y[n g d o] = Σ_{c i k} X[n g c i] Π[o i k] W[g c d k]``, a convolution's network with the roles of input and
    output exchanged; in the backward pass ``weight_vjp`` stands for ``V_W = Σ_{n i o} X Π V_Y`` and ``input_vjp`` for
    ``V_X = Σ_{d o k} W Π V_Y``, which is the convolution. The bias gradient is exact. Without grad mode, or with exact
    estimators, this is PyTorch's transposed convolution and nothing else.

    Args:
        x: Input ``[N, C, *I]``, or ``[C, *I]`` without a batch.
        weight: Kernel ``[C, D / groups, *K]``; its dimensions decide between 1-d, 2-d and 3-d.
        bias: ``[D]`` or ``None``.
        stride: Stride, one for all or one per dimension.
        padding: Padding (it makes the output smaller), one for all or one per dimension.
        output_padding: Positions added at the end of the output; less than the stride or the dilation.
        groups: Number of groups.
        dilation: Dilation, one for all or one per dimension. The order of arguments is PyTorch's.
        weight_vjp: Estimator of the gradient of ``weight``.
        input_vjp: Estimator of the gradient of ``x``.
        generator: Where the sample's seed is taken from, as in :func:`conv`.

    Returns:
        ``[N, D, *O]``, or ``[D, *O]`` without a batch.

    Raises:
        ValueError: If shapes and hyper-parameters do not fit together, or an estimator cannot serve its VJP.

    Example:
        >>> x, weight = torch.randn(8, 3, 16, 16), torch.randn(3, 4, 4, 4, requires_grad=True)
        >>> y = conv_transpose(x, weight, stride=2, padding=1, weight_vjp=Spatial(keep=0.25))
        >>> y.sum().backward()
        >>> y.shape, weight.grad.shape
        (torch.Size([8, 4, 32, 32]), torch.Size([3, 4, 4, 4]))
    """
    operation = conv_transpose_operation(x, weight, stride, padding, output_padding, groups, dilation)
    return call(operation, x, weight, bias, weight_vjp, input_vjp, generator)


def conv_transpose_operation(
    x: Tensor,
    weight: Tensor,
    stride: IntOrTuple,
    padding: IntOrTuple,
    output_padding: IntOrTuple,
    groups: int,
    dilation: IntOrTuple,
) -> TransposedConvolution:
    """A transposed convolution call of checked hyper-parameters; raises as :func:`conv_transpose_spec`."""
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: expected an integer or one per dimension")
    stride, padding, dilation = as_tuple(stride), as_tuple(padding), as_tuple(dilation)
    output_padding = as_tuple(output_padding)
    spec = conv_transpose_spec(x, weight, stride, padding, output_padding, groups, dilation)
    return TransposedConvolution(spec, (stride, padding, output_padding, groups, dilation))


def conv_transpose_spec(
    x: Tensor,
    weight: Tensor,
    stride: IntOrTuple,
    padding: IntOrTuple,
    output_padding: IntOrTuple,
    groups: int,
    dilation: IntOrTuple,
) -> ConvTransposeSpec:
    """The checked hyper-parameters of a transposed convolution call.

    Raises:
        ValueError: One line that names the argument, its value and what is allowed.
    """
    shape = batched_shape(x, weight, "C, D / groups")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups={groups!r}: expected a positive integer")
    if shape[1] != weight.shape[0] or shape[1] % groups:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)}, expected (C, D / groups, *K) "
            f"with C = {shape[1]} input channels, a multiple of groups={groups}"
        )
    channels, kernel = weight.shape[1] * groups, tuple(weight.shape[2:])
    return _conv_transpose_spec(shape, channels, kernel, stride, padding, dilation, groups, output_padding)


@lru_cache(maxsize=1024)
def _conv_transpose_spec(*arguments: object) -> ConvTransposeSpec:
    return ConvTransposeSpec(transposed_spec(*arguments))  # type: ignore[arg-type]
