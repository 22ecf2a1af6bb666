"""Convolution with estimated VJPs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd import check_arguments, estimated
from ..draws.seeds import default_stream
from ..estimators import Estimator, Exact, Spatial
from ..layers.functions import Convolution, spec_of
from ..layers.layer_specs import LayerSpec
from ..layers.spec import padding_pairs

IntOrTuple = int | tuple[int, ...]


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str | tuple[tuple[int, int], ...] = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    *,
    weight_vjp: Estimator = Spatial(keep=0.25),  # noqa: B008 -- a frozen value
    input_vjp: Estimator = Exact(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Tensor:
    """Convolution in one, two or three dimensions: forward exact, backward estimated.

    ``Y[n g d o] = Σ_{c i k} X[n g c i] Π[i o k] W[g d c k]``; in the backward pass ``weight_vjp`` estimates
    ``V_W = Σ_{n i o} X Π V_Y``, and ``input_vjp`` estimates ``V_X = Σ_{d o k} W Π V_Y``. The bias gradient is exact.
    Without grad mode, or with exact estimators, this is exactly PyTorch's convolution.

    Args:
        x: Input ``[N, C, *I]``, or ``[C, *I]`` without a batch.
        weight: Kernel ``[D, C / groups, *K]``; its dimensions decide between 1-d, 2-d and 3-d.
        bias: ``[D]`` or ``None``.
        stride: Stride, one for all or one per dimension.
        padding: Padding, one for all or one per dimension, a pair ``(left, right)`` per dimension, ``"same"`` or
            ``"valid"``.
        dilation: Dilation, one for all or one per dimension.
        groups: Number of groups.
        weight_vjp: Estimator of the gradient of ``weight``.
        input_vjp: Estimator of the gradient of ``x``.
        generator: Supplies the sample's seed, and is advanced by that. The default is randbp's own stream, see
            :func:`randbp.manual_seed`; PyTorch's global generators are never touched.

    Returns:
        ``[N, D, *O]``, or ``[D, *O]`` without a batch.

    Raises:
        ValueError: If shapes and hyper-parameters do not fit together, or an estimator cannot serve its VJP.

    Example:
        >>> x, weight = torch.randn(8, 3, 16, 16), torch.randn(4, 3, 3, 3, requires_grad=True)
        >>> y = conv(x, weight, padding=1, weight_vjp=Spatial(keep=0.25), generator=torch.Generator().manual_seed(0))
        >>> y.sum().backward()
        >>> weight.grad.shape
        torch.Size([4, 3, 3, 3])
    """
    check_arguments(x, weight, bias, weight_vjp, input_vjp, generator)
    if isinstance(padding, list | tuple) and any(isinstance(pair, list | tuple) for pair in padding):
        # PyTorch's convolutions pad both sides alike.
        pairs = padding_pairs(padding, weight.dim() - 2)
        x, padding = F.pad(x, [width for pair in reversed(pairs) for width in pair]), 0
    function = Convolution.of(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return estimated(function, x, weight, bias, weight_vjp, input_vjp, default_stream, generator)


def conv_spec(
    x: Tensor,
    weight: Tensor,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
) -> LayerSpec:
    """Check the hyper-parameters of a convolution call, and return its :class:`randbp.tn.ConvSpec`.

    Raises:
        ValueError: One line that names the argument, its value and what is allowed.
    """
    function = Convolution.of(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return spec_of(function, x.shape, weight.shape)
