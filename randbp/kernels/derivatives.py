r"""Derivatives of smooth activations in single precision, by a few additions, multiplications and divisions.

All are made of ``exp`` by a polynomial, after Cephes' ``expf``, which is right to 2e-7 of its value, and GELU's of
``erfc`` by formula 7.1.26 of M. Abramowitz and I. A. Stegun, Handbook of mathematical functions (1964), which is right
to 1.5e-7. What compilers make of a library's functions differs; these few operations give the same bits everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FUNCTIONS = ("gelu", "gelu_tanh", "silu", "mish", "sigmoid", "tanh", "tanhshrink", "softplus", "elu", "hardswish")
"""Activations. The first parameter multiplies ``x`` before anything else. The others are, of ``softplus``, the number
above which the slope is 1, and of ``elu`` the slope of ``exp`` and that of positive entries."""

FAR = 100.0
"""Beyond it no derivative changes."""

REACH = 87.0
"""Magnitude of exponents up to which ``exp`` neither overflows nor leaves the normal numbers."""

LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
ERFC_RATE, ERFC = 0.3275911, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
ROOT_HALF, DENSITY = 0.70710678118654752, 0.39894228040143268  # √(1/2), 1 / √(2π)
TANH_RATE, CUBE = 1.5957691216057308, 0.044715  # 2 √(2/π)


def exp(x: Tensor) -> Tensor:
    """``e^x`` for exponents within ±87, and as at these ends beyond.

    Example:
        >>> x = torch.linspace(-20, 20, 1000)
        >>> bool(((exp(x) / x.exp() - 1).abs() < 4e-7).all())
        True
    """
    x = x.clamp(-REACH, REACH)
    power = (x * LOG2_E).add_(128.5).to(torch.int32)
    whole = power.float().sub_(128)
    x = x.sub_(whole * LN2_HIGH).sub_(whole.mul_(LN2_LOW))
    y = x * EXP[0]
    for coefficient in EXP[1:-1]:
        y.add_(coefficient).mul_(x)
    y.add_(EXP[-1]).mul_(x).mul_(x).add_(x).add_(1)
    return y.mul_((power - 1).bitwise_left_shift_(23).view(torch.float32))


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + e^-x)``."""
    return exp(-x).add_(1).reciprocal_()


def derivative(x: Tensor, function: str, parameters: Sequence[float]) -> Tensor:
    """``φ'(x)`` of one of :data:`FUNCTIONS`, in single precision; NaN where PyTorch's is.

    Example:
        >>> x = torch.linspace(-5, 5, 100, requires_grad=True)
        >>> torch.nn.functional.gelu(x).sum().backward()
        >>> bool((derivative(x.detach(), "gelu", [1.0, 0.0, 0.0]) - x.grad).abs().max() < 1e-6)
        True
    """
    factor, second, third = parameters
    z = (x * factor).clamp_(-FAR, FAR).nan_to_num_(0)
    slope = _slope(z, function, second, third)
    times_itself = function in ("gelu", "gelu_tanh", "silu", "mish")  # 0 times infinity, there
    return slope.masked_fill_(x.isfinite().logical_not_() if times_itself else x.isnan(), torch.nan)


def _slope(z: Tensor, function: str, second: float, third: float) -> Tensor:
    if function == "gelu":
        size = z.abs() * ROOT_HALF
        density = exp(-(size * size))
        near = (size * ERFC_RATE).add_(1).reciprocal_()
        tail = near * ERFC[0]
        for coefficient in ERFC[1:]:
            tail.add_(coefficient).mul_(near)
        tail.mul_(density).mul_(0.5)
        return torch.where(z > 0, 1 - tail, tail) + (z * density).mul_(DENSITY)
    if function == "gelu_tanh":
        square = z * z
        p = sigmoid((square * CUBE).add_(1).mul_(z).mul_(TANH_RATE))
        inner = (square * (3 * CUBE)).add_(1).mul_(TANH_RATE)
        return p + (1 - p).mul_(p).mul_(z).mul_(inner)
    if function == "silu":
        p = sigmoid(z)
        return (1 - p).mul_(z).add_(1).mul_(p)
    if function == "mish":
        power = exp(z.clamp(max=20))
        share = power / (power + 1)
        double = (power + 2).mul_(power)
        tanh = double / (double + 2)
        return tanh + (1 - tanh * tanh).mul_(share).mul_(z)
    if function == "elu":
        return torch.where(z > 0, third, exp(z.clamp(max=0)) * second)
    if function == "hardswish":
        middle = (z * (1 / 3)).add_(0.5)
        return torch.where(z <= -3, 0, torch.where(z < 3, middle, 1))
    p = sigmoid(z)
    if function == "softplus":
        return torch.where(z > second, 1, p)
    if function == "sigmoid":
        return (1 - p).mul_(p)
    four = (1 - p).mul_(p).mul_(4)
    return four if function == "tanh" else 1 - four
