r"""Derivatives of smooth activations in single precision, by a few additions, multiplications and divisions.

All are made of ``exp`` by a polynomial, after Cephes' ``expf``, which is right to 2e-7 of its value, and GELU's of
``erfc`` by formula 7.1.26 of M. Abramowitz and I. A. Stegun, Handbook of mathematical functions (1964), which is right
to 1.5e-7. What compilers make of a library's functions differs; these few operations give the same bits everywhere.

Each formula is written once, in words such as ``where`` and ``ONE`` that stand for PyTorch's functions and numbers.
:func:`translated` gives the same formulas to numba's or Triton's compiler, with words that it knows.
"""

from collections.abc import Callable, Sequence
from operator import truediv as divided
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, where
from torch import abs as magnitude

GELU, GELU_TANH, SILU, MISH, SIGMOID = "gelu", "gelu_tanh", "silu", "mish", "sigmoid"
TANH, TANHSHRINK, SOFTPLUS, ELU, HARDSWISH = "tanh", "tanhshrink", "softplus", "elu", "hardswish"
FUNCTIONS = (GELU, GELU_TANH, SILU, MISH, SIGMOID, TANH, TANHSHRINK, SOFTPLUS, ELU, HARDSWISH)
"""Activations. The first parameter multiplies ``x`` before anything else. The others are, of ``softplus``, the number
above which the slope is 1, and of ``elu`` the slope of ``exp`` and that of positive entries."""

FAR = 100.0
"""Beyond it no derivative changes."""

REACH = 87.0
"""Magnitude of exponents up to which ``exp`` neither overflows nor leaves the normal numbers."""

LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
E0, E1, E2, E3, E4, E5 = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
ERFC_RATE, C0, C1, C2, C3, C4 = 0.3275911, 1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592
ROOT_HALF, DENSITY = 0.70710678118654752, 0.39894228040143268  # √(1/2), 1 / √(2π)
TANH_RATE, CUBE, CUBE_3 = 1.5957691216057308, 0.044715, 3 * 0.044715  # the first is 2 √(2/π)
ZERO, HALF, THIRD, ONE, TWO, THREE, FOUR, TWENTY = 0.0, 0.5, 1 / 3, 1.0, 2.0, 3.0, 4.0, 20.0
UP, DOWN, LARGEST = 128.5, 128.0, torch.finfo(torch.float32).max

Words = dict[str, Any]


def translated(
    compiled: Callable[[FunctionType], Any], module: str, words: Words, number: Callable[[float], Any]
) -> Words:
    """The formulas of this file compiled otherwise, by name.

    Args:
        compiled: Compiles a function.
        module: Whose globals the functions become.
        words: What the functions that are called stand for, and the names of activations.
        number: Makes a constant of a number.
    """
    constants = {name: number(value) for name, value in globals().items() if isinstance(value, float)}
    names = {"__name__": module, **constants, **words}
    for formula in (exp, sigmoid, slope, at):
        names[formula.__name__] = compiled(FunctionType(formula.__code__, names))
    return names


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
    wrong = x.isfinite().logical_not_() if function in (GELU, GELU_TANH, SILU, MISH) else x.isnan()
    result: Tensor = slope(z, function, second, third)
    return result.masked_fill_(wrong, torch.nan)


def within(x: Tensor, limit: float) -> Tensor:
    """Numbers, but at most a limit from 0."""
    return x.clamp(-limit, limit)


def least(x: Tensor, limit: float) -> Tensor:
    """Numbers, but at most a limit."""
    return x.clamp(max=limit)


def integer(x: Tensor) -> Tensor:
    """Whole parts, ``int32``."""
    return x.to(torch.int32)


def real(x: Tensor) -> Tensor:
    """Integers in single precision."""
    return x.float()


def power_of_two(x: Tensor) -> Tensor:
    """``2^(x - 128)``, of integers ``x``."""
    return (x - 1).bitwise_left_shift_(23).view(torch.float32)


def exp(x):
    """``e^x`` for exponents within ±87, and as at these ends beyond.

    Example:
        >>> x = torch.linspace(-20, 20, 1000)
        >>> bool(((exp(x) / x.exp() - 1).abs() < 4e-7).all())
        True
    """
    x = within(x, REACH)
    power = integer(x * LOG2_E + UP)
    whole = real(power) - DOWN
    x = x - whole * LN2_HIGH - whole * LN2_LOW
    y = ((((x * E0 + E1) * x + E2) * x + E3) * x + E4) * x
    return ((y + E5) * x * x + x + ONE) * power_of_two(power)


def sigmoid(x):
    """``1 / (1 + e^-x)``."""
    return divided(ONE, exp(-x) + ONE)


def at(x, function, factor, second, third):
    """:func:`derivative` for compilers, which make one pass over memory of it."""
    z = x * factor
    z = where(z == z, within(z, FAR), ZERO)
    result = slope(z, function, second, third)
    defined = x == x
    if function == GELU or function == GELU_TANH or function == SILU or function == MISH:  # noqa: SIM109
        defined = magnitude(x) <= LARGEST  # not 0 times infinity
    return where(defined, result, x - x)  # else NaN


def slope(z, function, second, third):
    """``φ'`` at numbers that are not far from 0."""
    if function == GELU:
        size = magnitude(z) * ROOT_HALF
        density = exp(-(size * size))
        near = divided(ONE, size * ERFC_RATE + ONE)
        tail = ((((near * C0 + C1) * near + C2) * near + C3) * near + C4) * near * density * HALF
        result = where(z > ZERO, ONE - tail, tail) + z * density * DENSITY
    elif function == GELU_TANH:
        square = z * z
        p = sigmoid((square * CUBE + ONE) * z * TANH_RATE)
        result = p + (ONE - p) * p * z * ((square * CUBE_3 + ONE) * TANH_RATE)
    elif function == SILU:
        p = sigmoid(z)
        result = ((ONE - p) * z + ONE) * p
    elif function == MISH:
        power = exp(least(z, TWENTY))
        double = (power + TWO) * power
        tanh = divided(double, double + TWO)
        result = tanh + (ONE - tanh * tanh) * divided(power, power + ONE) * z
    elif function == ELU:
        result = where(z > ZERO, third, exp(least(z, ZERO)) * second)
    elif function == HARDSWISH:
        result = where(z <= -THREE, ZERO, where(z < THREE, z * THIRD + HALF, ONE))
    elif function == SOFTPLUS:
        result = where(z > second, ONE, sigmoid(z))
    else:
        p = sigmoid(z)
        result = (ONE - p) * p
        if function == TANH:
            result = result * FOUR
        elif function == TANHSHRINK:
            result = ONE - result * FOUR
    return result
