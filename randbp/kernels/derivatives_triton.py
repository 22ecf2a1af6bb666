"""Derivatives of smooth activations for Triton's kernels: see :mod:`.derivatives`."""

import triton
import triton.language as tl

from . import derivatives as of
from .basics_triton import divided

FAR, REACH = tl.constexpr(of.FAR), tl.constexpr(of.REACH)
LOG2_E, LN2_HIGH, LN2_LOW = tl.constexpr(of.LOG2_E), tl.constexpr(of.LN2_HIGH), tl.constexpr(of.LN2_LOW)
E0, E1, E2, E3, E4, E5 = map(tl.constexpr, of.EXP)
ERFC_RATE = tl.constexpr(of.ERFC_RATE)
C0, C1, C2, C3, C4 = map(tl.constexpr, of.ERFC)
ROOT_HALF, DENSITY = tl.constexpr(of.ROOT_HALF), tl.constexpr(of.DENSITY)
TANH_RATE, CUBE, INNER = tl.constexpr(of.TANH_RATE), tl.constexpr(of.CUBE), tl.constexpr(3 * of.CUBE)
PART = tl.constexpr(1 / 3)


@triton.jit
def derivative(x, FUNCTION: tl.constexpr, factor, second, third):
    """The derivative of an activation in single precision."""
    z = x * factor
    z = tl.where(z == z, tl.minimum(tl.maximum(z, -FAR), FAR), 0.0)
    slope = _slope(z, FUNCTION, second, third)
    if FUNCTION == "gelu" or FUNCTION == "gelu_tanh" or FUNCTION == "silu" or FUNCTION == "mish":
        defined = tl.abs(x) < float("inf")
    else:
        defined = x == x
    return tl.where(defined, slope, float("nan"))


@triton.jit
def _slope(z, FUNCTION: tl.constexpr, second, third):
    if FUNCTION == "gelu":
        size = tl.abs(z) * ROOT_HALF
        density = exp(-(size * size))
        near = _reciprocal(size * ERFC_RATE + 1.0)
        tail = ((((near * C0 + C1) * near + C2) * near + C3) * near + C4) * near
        tail = tail * density * 0.5
        slope = tl.where(z > 0, 1.0 - tail, tail) + z * density * DENSITY
    elif FUNCTION == "gelu_tanh":
        square = z * z
        p = _sigmoid((square * CUBE + 1.0) * z * TANH_RATE)
        inner = (square * INNER + 1.0) * TANH_RATE
        slope = p + (1.0 - p) * p * z * inner
    elif FUNCTION == "silu":
        p = _sigmoid(z)
        slope = ((1.0 - p) * z + 1.0) * p
    elif FUNCTION == "mish":
        power = exp(tl.minimum(z, 20.0))
        share = divided(power, power + 1.0)
        double = (power + 2.0) * power
        tanh = divided(double, double + 2.0)
        slope = tanh + (1.0 - tanh * tanh) * share * z
    elif FUNCTION == "elu":
        slope = tl.where(z > 0, third, exp(tl.minimum(z, 0.0)) * second)
    elif FUNCTION == "hardswish":
        slope = tl.where(z <= -3, 0.0, tl.where(z < 3, z * PART + 0.5, 1.0))
    elif FUNCTION == "softplus":
        slope = tl.where(z > second, 1.0, _sigmoid(z))
    elif FUNCTION == "sigmoid":
        p = _sigmoid(z)
        slope = (1.0 - p) * p
    else:
        p = _sigmoid(z)
        slope = (1.0 - p) * p * 4.0
        slope = slope if FUNCTION == "tanh" else 1.0 - slope
    return slope


@triton.jit
def exp(x):
    """``e^x`` for exponents within ±87."""
    x = tl.minimum(tl.maximum(x, -REACH), REACH)
    power = (x * LOG2_E + 128.5).to(tl.int32)
    whole = power.to(tl.float32) - 128.0
    x = x - whole * LN2_HIGH - whole * LN2_LOW
    y = ((((x * E0 + E1) * x + E2) * x + E3) * x + E4) * x
    y = (y + E5) * x * x + x + 1.0
    return y * ((power - 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _sigmoid(x):
    return _reciprocal(exp(-x) + 1.0)


@triton.jit
def _reciprocal(x):
    return divided(tl.zeros_like(x) + 1.0, x)
