"""Derivatives of smooth activations for numba's kernels: see :mod:`.derivatives`."""

import numpy as np

from . import derivatives
from .jit import function

_GELU, _GELU_TANH, _SILU, _MISH, _SIGMOID, _TANH, _TANHSHRINK, _SOFTPLUS, _ELU, _HARDSWISH = range(10)

_HALF, _ONE, _TWO, _THREE, _FOUR, _TWENTY = (np.float32(n) for n in (0.5, 1, 2, 3, 4, 20))
_ZERO, _FAR, _REACH, _LARGEST = (
    np.float32(0),
    np.float32(derivatives.FAR),
    np.float32(derivatives.REACH),
    np.finfo(np.float32).max,
)
_LOG2_E, _HIGH, _LOW = np.float32(derivatives.LOG2_E), np.float32(derivatives.LN2_HIGH), np.float32(derivatives.LN2_LOW)
_UP, _DOWN, _THIRD = np.float32(128.5), np.float32(128), np.float32(1 / 3)
_E0, _E1, _E2, _E3, _E4, _E5 = (np.float32(c) for c in derivatives.EXP)
_RATE, _ROOT_HALF, _DENSITY = (
    np.float32(derivatives.ERFC_RATE),
    np.float32(derivatives.ROOT_HALF),
    np.float32(derivatives.DENSITY),
)
_C0, _C1, _C2, _C3, _C4 = (np.float32(c) for c in derivatives.ERFC)
_TANH_RATE, _CUBE, _CUBE_3 = (
    np.float32(derivatives.TANH_RATE),
    np.float32(derivatives.CUBE),
    np.float32(3 * derivatives.CUBE),
)


@function
def exp(x, scale, out):
    """``e^x``; ``scale`` is room. No two of these may lie in one place: such loops would not be vectorised."""
    bits = scale.view(np.int32)
    for i in range(len(x)):
        z = x[i]
        z = _REACH if z > _REACH else z
        z = -_REACH if z < -_REACH else z
        power = np.int32(z * _LOG2_E + _UP)
        whole = np.float32(power) - _DOWN
        z = (z - whole * _HIGH) - whole * _LOW
        y = ((((z * _E0 + _E1) * z + _E2) * z + _E3) * z + _E4) * z
        out[i] = ((y + _E5) * z) * z + z + _ONE
        bits[i] = (power - 1) << 23
    for i in range(len(x)):
        out[i] *= scale[i]


@function
def _sigmoid(x, minus, scale, power, out):
    for i in range(len(x)):
        minus[i] = -x[i]
    exp(minus, scale, power)
    for i in range(len(x)):
        out[i] = _ONE / (power[i] + _ONE)


@function
def derivative(x, function, parameters, z, scale, p, q, e):
    """Put the derivatives in the place of ``x``; ``z`` to ``e`` are room for as many numbers each."""
    factor, second, third = parameters[0], parameters[1], parameters[2]
    for i in range(len(x)):
        value = x[i] * factor
        value = _FAR if value > _FAR else value
        value = -_FAR if value < -_FAR else value
        z[i] = value if value == value else _ZERO
    if function == _GELU:
        _gelu(z, scale, p, e, q)
    elif function == _GELU_TANH:
        _gelu_tanh(z, scale, p, e, q)
    elif function == _SILU:
        _sigmoid(z, q, scale, e, p)
        for i in range(len(z)):
            q[i] = ((_ONE - p[i]) * z[i] + _ONE) * p[i]
    elif function == _MISH:
        _mish(z, scale, p, e, q)
    elif function == _ELU:
        for i in range(len(z)):
            p[i] = z[i] if z[i] < _ZERO else _ZERO
        exp(p, scale, e)
        for i in range(len(z)):
            q[i] = third if z[i] > _ZERO else e[i] * second
    elif function == _HARDSWISH:
        for i in range(len(z)):
            middle = z[i] * _THIRD + _HALF
            high = middle if z[i] < _THREE else _ONE
            q[i] = _ZERO if z[i] <= -_THREE else high
    else:
        _sigmoid(z, q, scale, e, p)
        if function == _SOFTPLUS:
            for i in range(len(z)):
                q[i] = _ONE if z[i] > second else p[i]
        elif function == _SIGMOID:
            for i in range(len(z)):
                q[i] = (_ONE - p[i]) * p[i]
        elif function == _TANH:
            for i in range(len(z)):
                q[i] = ((_ONE - p[i]) * p[i]) * _FOUR
        else:
            for i in range(len(z)):
                q[i] = _ONE - ((_ONE - p[i]) * p[i]) * _FOUR
    if function <= _MISH:
        for i in range(len(x)):
            x[i] = q[i] if abs(x[i]) <= _LARGEST else np.float32(np.nan)
    else:
        for i in range(len(x)):
            x[i] = q[i] if x[i] == x[i] else np.float32(np.nan)


@function
def _gelu(z, scale, minus, density, out):
    for i in range(len(z)):
        size = abs(z[i]) * _ROOT_HALF
        minus[i] = -(size * size)
    exp(minus, scale, density)
    for i in range(len(z)):
        near = _ONE / (abs(z[i]) * _ROOT_HALF * _RATE + _ONE)
        tail = ((((near * _C0 + _C1) * near + _C2) * near + _C3) * near + _C4) * near
        tail = (tail * density[i]) * _HALF
        share = _ONE - tail if z[i] > _ZERO else tail
        out[i] = share + (z[i] * density[i]) * _DENSITY


@function
def _gelu_tanh(z, scale, p, power, out):
    for i in range(len(z)):
        p[i] = -(((z[i] * z[i]) * _CUBE + _ONE) * z[i] * _TANH_RATE)
    exp(p, scale, power)
    for i in range(len(z)):
        p[i] = _ONE / (power[i] + _ONE)
    for i in range(len(z)):
        inner = ((z[i] * z[i]) * _CUBE_3 + _ONE) * _TANH_RATE
        out[i] = p[i] + (((_ONE - p[i]) * p[i]) * z[i]) * inner


@function
def _mish(z, scale, low, power, out):
    for i in range(len(z)):
        low[i] = z[i] if z[i] < _TWENTY else _TWENTY
    exp(low, scale, power)
    for i in range(len(z)):
        share = power[i] / (power[i] + _ONE)
        double = (power[i] + _TWO) * power[i]
        tanh = double / (double + _TWO)
        out[i] = tanh + ((_ONE - tanh * tanh) * share) * z[i]
