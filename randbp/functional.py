"""Operations of ``torch.nn.functional`` with an exact forward pass and estimated VJPs."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .autograd.conv import estimated_conv, native_conv
from .estimators import Estimator, Exact, Spatial
from .estimators.base import Vjp
from .estimators.draw import default_stream, seed_from
from .tn import ConvSpec

IntOrTuple = int | tuple[int, ...]


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrTuple = 1,
    padding: IntOrTuple | str = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
    *,
    weight_vjp: Estimator = Spatial(keep=0.25),  # noqa: B008 -- a frozen value
    input_vjp: Estimator = Exact(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Tensor:
    """Convolution in one, two or three dimensions: forward exact, backward estimated.

    ``Y[n g d o] = Σ_{c i k} X[n g c i] Π[i o k] W[g d c k]``; in the backward pass ``weight_vjp`` stands for
    ``V_W = Σ_{n i o} X Π V_Y`` and ``input_vjp`` for ``V_X = Σ_{d o k} W Π V_Y``. The bias gradient is exact. Without
    grad mode, or with exact estimators, this is PyTorch's convolution and nothing else.

    Args:
        x: Input ``[N, C, *I]``, or ``[C, *I]`` without a batch.
        weight: Kernel ``[D, C / groups, *K]``; its dimensions decide between 1-d, 2-d and 3-d.
        bias: ``[D]`` or ``None``.
        stride: Stride, one for all or one per dimension.
        padding: Padding, one for all or one per dimension, ``"same"`` or ``"valid"``.
        dilation: Dilation, one for all or one per dimension.
        groups: Number of groups.
        weight_vjp: Estimator of the gradient of ``weight``.
        input_vjp: Estimator of the gradient of ``x``.
        generator: Where the sample's seed is taken from, and which is advanced by that. By default randbp's own
            stream, see :func:`randbp.manual_seed`; PyTorch's global generators are never touched.

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
    check_estimator("weight_vjp", weight_vjp)
    check_estimator("input_vjp", input_vjp)
    stride, dilation = _as_tuple(stride), _as_tuple(dilation)
    padding = padding if isinstance(padding, str) else _as_tuple(padding)
    spec = conv_spec(x, weight, stride, padding, dilation, groups)
    geometry = (stride, padding, dilation, groups)
    if not is_estimated(x, weight, weight_vjp, input_vjp):
        return native_conv(x, weight, bias, *geometry)
    seed = default_stream.next() if generator is None else seed_from(generator)
    return conv_with_seed(x, weight, bias, geometry, spec, weight_vjp, input_vjp, seed)


def conv_with_seed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple[Any, ...],
    spec: ConvSpec,
    weight_vjp: Estimator,
    input_vjp: Estimator,
    seed: int,
) -> Tensor:
    """Estimated convolution of checked arguments, with or without a batch dimension."""
    if x.is_complex() or weight.is_complex():
        raise ValueError(f"x: dtype {x.dtype}, expected a real floating dtype where a VJP is estimated")
    if x.dim() == weight.dim():
        return estimated_conv(x, weight, bias, geometry, spec, weight_vjp, input_vjp, seed)
    return estimated_conv(x.unsqueeze(0), weight, bias, geometry, spec, weight_vjp, input_vjp, seed).squeeze(0)


def is_estimated(x: Tensor, weight: Tensor, weight_vjp: Estimator, input_vjp: Estimator) -> bool:
    """Whether backward would differ from PyTorch's in what it computes or holds."""
    if not torch.is_grad_enabled() or (weight_vjp.exact and input_vjp.exact):
        return False
    # With a frozen weight nothing of the input need be held, which PyTorch's own convolution would.
    estimates_weight = not weight_vjp.exact and (weight.requires_grad or x.requires_grad)
    return estimates_weight or (not input_vjp.exact and x.requires_grad)


def conv_spec(
    x: Tensor,
    weight: Tensor,
    stride: IntOrTuple,
    padding: IntOrTuple | str,
    dilation: IntOrTuple,
    groups: int,
) -> ConvSpec:
    """The checked hyper-parameters of a convolution call.

    Raises:
        ValueError: One line that names the argument, its value and what is allowed.
    """
    dims = weight.dim() - 2
    if dims not in (1, 2, 3):
        raise ValueError(f"weight: shape {tuple(weight.shape)}, expected (D, C / groups, *K) with 1 to 3 kernel sizes")
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"x: shape {tuple(x.shape)}, expected {dims + 2} dimensions, or {dims + 1} without a batch")
    shape = tuple(x.shape) if x.dim() == dims + 2 else (1, *x.shape)
    spec = _conv_spec(shape, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation, groups)
    if spec.weight_shape != tuple(weight.shape):
        raise ValueError(
            f"weight: shape {tuple(weight.shape)}, expected {spec.weight_shape} "
            f"for {spec.in_channels} input channels in groups={groups}"
        )
    return spec


_conv_spec = lru_cache(maxsize=1024)(ConvSpec)


def check_estimator(name: Vjp, estimator: object) -> None:
    """Raise ``ValueError`` unless ``estimator`` is an estimator that serves the VJP called ``name``."""
    if not isinstance(estimator, Estimator):
        raise ValueError(f"{name}={estimator!r}: expected an estimator such as Spatial(keep=0.25) or Exact()")
    estimator.check_serves(name)


def _as_tuple(value: Any) -> IntOrTuple:
    return value if isinstance(value, int) else tuple(value)
