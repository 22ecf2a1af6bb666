"""Linear layer with estimated VJPs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd import check_arguments, check_estimator, estimated
from ..draws.seeds import default_stream
from ..estimators import Estimator, Exact, Spatial
from ..layers.functions import Linear


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_vjp: Estimator = Spatial(keep=0.25),  # noqa: B008 -- a frozen value
    input_vjp: Estimator = Exact(),  # noqa: B008
    generator: torch.Generator | None = None,
) -> Tensor:
    """Linear layer on vectors or sequences: forward exact, backward estimated.

    ``Y[n t d] = Σ_c X[n t c] W[d c]``; in the backward pass ``weight_vjp`` estimates ``V_W = Σ_{n t} X V_Y`` and
    ``input_vjp`` estimates ``V_X = Σ_d W V_Y``. Estimators treat this as a convolution along the sequence with a kernel
    of one entry: they keep positions ``t`` of each example. Without a sequence the weight VJP sums over examples only,
    so samplers of positions sample examples. The bias gradient is exact. Without grad mode, or with exact estimators,
    this is PyTorch's linear layer and nothing else.

    Args:
        x: Input ``[C]``, ``[N, C]`` or ``[N, *sequence, C]``.
        weight: ``[D, C]``.
        bias: ``[D]`` or ``None``.
        weight_vjp: Estimator of the gradient of ``weight``.
        input_vjp: Estimator of the gradient of ``x``.
        generator: Supplies the sample's seed, as in :func:`conv`.

    Returns:
        ``x``'s shape with ``D`` as its last size.

    Raises:
        ValueError: If the shapes do not fit together, or an estimator cannot serve its VJP.

    Example:
        >>> x, weight = torch.randn(8, 10, 64), torch.randn(32, 64, requires_grad=True)
        >>> y = linear(x, weight, weight_vjp=Spatial(keep=0.25))
        >>> y.sum().backward()
        >>> y.shape, weight.grad.shape
        (torch.Size([8, 10, 32]), torch.Size([32, 64]))
    """
    check_arguments(x, weight, bias, weight_vjp, input_vjp, generator)
    if weight.dim() != 2:
        raise ValueError(f"weight: shape {tuple(weight.shape)}, expected (D, C)")
    if not x.dim() or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, expected (C,), (N, C) or (N, *sequence, C) with C = {weight.shape[1]}"
        )
    if not x.numel() or not weight.numel():  # nothing to estimate
        check_estimator("weight_vjp", weight_vjp)
        check_estimator("input_vjp", input_vjp)
        return F.linear(x, weight, bias)
    return estimated(Linear(), x, weight, bias, weight_vjp, input_vjp, default_stream, generator)
