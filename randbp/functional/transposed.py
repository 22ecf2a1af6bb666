"""Transposed convolution with estimated VJPs."""

import torch
from torch import Tensor

from ..autograd import check_arguments, estimated
from ..draws.seeds import default_stream
from ..estimators import Estimator, Exact, Spatial
from ..layers.functions import TransposedConvolution, spec_of
from ..layers.layer_specs import LayerSpec
from .convolution import IntOrTuple


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
    output exchanged; in the backward pass ``weight_vjp`` estimates ``V_W = Σ_{n i o} X Π V_Y``, and ``input_vjp``
    estimates ``V_X = Σ_{d o k} W Π V_Y``, which is the convolution. The bias gradient is exact. Without grad mode, or
    with exact estimators, this is exactly PyTorch's transposed convolution.

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
        generator: Supplies the sample's seed, as in :func:`conv`.

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
    check_arguments(x, weight, bias, weight_vjp, input_vjp, generator)
    function = _function(stride, padding, output_padding, groups, dilation)
    return estimated(function, x, weight, bias, weight_vjp, input_vjp, default_stream, generator)


def conv_transpose_spec(
    x: Tensor,
    weight: Tensor,
    stride: IntOrTuple,
    padding: IntOrTuple,
    output_padding: IntOrTuple,
    groups: int,
    dilation: IntOrTuple,
) -> LayerSpec:
    """Check the hyper-parameters of a transposed convolution call, and return its :class:`randbp.tn.ConvTransposeSpec`.

    Raises:
        ValueError: One line that names the argument, its value and what is allowed.
    """
    return spec_of(_function(stride, padding, output_padding, groups, dilation), x.shape, weight.shape)


def _function(
    stride: IntOrTuple, padding: IntOrTuple, output_padding: IntOrTuple, groups: int, dilation: IntOrTuple
) -> TransposedConvolution:
    return TransposedConvolution.of(
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation
    )
