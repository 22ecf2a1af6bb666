"""Derivatives of smooth activations for numba's kernels: see :mod:`.derivatives`."""

import numpy as np

from . import derivatives as of
from .instructions_numba import left, number_of, subtract
from .jit import function

_GELU, _GELU_TANH, _SILU, _MISH, _SIGMOID, _TANH, _TANHSHRINK, _SOFTPLUS, _ELU, _HARDSWISH = range(10)

_ZERO, _HALF, _ONE, _TWO, _THREE, _FOUR, _TWENTY = (np.float32(n) for n in (0, 0.5, 1, 2, 3, 4, 20))
_UP, _DOWN, _THIRD = (np.float32(n) for n in (128.5, 128, 1 / 3))
_FAR, _REACH, _LOG2_E, _HIGH, _LOW = (np.float32(n) for n in (of.FAR, of.REACH, of.LOG2_E, of.LN2_HIGH, of.LN2_LOW))
_RATE, _ROOT_HALF, _DENSITY = (np.float32(n) for n in (of.ERFC_RATE, of.ROOT_HALF, of.DENSITY))
_TANH_RATE, _CUBE, _CUBE_3 = (np.float32(n) for n in (of.TANH_RATE, of.CUBE, 3 * of.CUBE))
_E0, _E1, _E2, _E3, _E4, _E5 = (np.float32(c) for c in of.EXP)
_C0, _C1, _C2, _C3, _C4 = (np.float32(c) for c in of.ERFC)
_1, _23, _NAN, _LARGEST = np.int32(1), np.int32(23), np.float32(np.nan), np.finfo(np.float32).max


@function
def exp(x):
    """``e^x`` of a number in single precision."""
    z = _REACH if x > _REACH else x
    z = -_REACH if z < -_REACH else z
    power = np.int32(z * _LOG2_E + _UP)
    whole = np.float32(power) - _DOWN
    z = (z - whole * _HIGH) - whole * _LOW
    y = ((((z * _E0 + _E1) * z + _E2) * z + _E3) * z + _E4) * z
    return (((y + _E5) * z) * z + z + _ONE) * number_of(left(subtract(power, _1), _23))


@function
def _sigmoid(x):
    return _ONE / (exp(-x) + _ONE)


@function
def derivative(x, size, function, parameters, out):
    """Put the derivatives at ``size`` numbers ``x`` into ``out``: pointers to places that do not overlap."""
    factor, second, third = parameters[0], parameters[1], parameters[2]
    if function == _GELU:
        for i in range(size):
            out[i] = _where_finite(x[i], _gelu(_within(x[i], factor)))
    elif function == _GELU_TANH:
        for i in range(size):
            out[i] = _where_finite(x[i], _gelu_tanh(_within(x[i], factor)))
    elif function == _SILU:
        for i in range(size):
            z = _within(x[i], factor)
            p = _sigmoid(z)
            out[i] = _where_finite(x[i], ((_ONE - p) * z + _ONE) * p)
    elif function == _MISH:
        for i in range(size):
            out[i] = _where_finite(x[i], _mish(_within(x[i], factor)))
    elif function == _ELU:
        for i in range(size):
            z = _within(x[i], factor)
            below = exp(z if z < _ZERO else _ZERO) * second
            out[i] = _where_number(x[i], third if z > _ZERO else below)
    elif function == _HARDSWISH:
        for i in range(size):
            z = _within(x[i], factor)
            middle = z * _THIRD + _HALF
            high = middle if z < _THREE else _ONE
            out[i] = _where_number(x[i], _ZERO if z <= -_THREE else high)
    elif function == _SOFTPLUS:
        for i in range(size):
            z = _within(x[i], factor)
            p = _sigmoid(z)
            out[i] = _where_number(x[i], _ONE if z > second else p)
    elif function == _SIGMOID:
        for i in range(size):
            p = _sigmoid(_within(x[i], factor))
            out[i] = _where_number(x[i], (_ONE - p) * p)
    elif function == _TANH:
        for i in range(size):
            p = _sigmoid(_within(x[i], factor))
            out[i] = _where_number(x[i], ((_ONE - p) * p) * _FOUR)
    else:
        for i in range(size):
            p = _sigmoid(_within(x[i], factor))
            out[i] = _where_number(x[i], _ONE - ((_ONE - p) * p) * _FOUR)


@function
def _within(x, factor):
    """``factor x``, not too far from 0, and 0 for NaN."""
    z = x * factor
    z = _FAR if z > _FAR else z
    z = -_FAR if z < -_FAR else z
    return z if z == z else _ZERO


@function
def _where_finite(x, slope):
    return slope if abs(x) <= _LARGEST else _NAN


@function
def _where_number(x, slope):
    return slope if x == x else _NAN


@function
def _gelu(z):
    size = abs(z) * _ROOT_HALF
    density = exp(-(size * size))
    near = _ONE / (size * _RATE + _ONE)
    tail = ((((near * _C0 + _C1) * near + _C2) * near + _C3) * near + _C4) * near
    tail = (tail * density) * _HALF
    share = _ONE - tail if z > _ZERO else tail
    return share + (z * density) * _DENSITY


@function
def _gelu_tanh(z):
    p = _sigmoid(((z * z) * _CUBE + _ONE) * z * _TANH_RATE)
    inner = ((z * z) * _CUBE_3 + _ONE) * _TANH_RATE
    return p + (((_ONE - p) * p) * z) * inner


@function
def _mish(z):
    power = exp(z if z < _TWENTY else _TWENTY)
    share = power / (power + _ONE)
    double = (power + _TWO) * power
    tanh = double / (double + _TWO)
    return tanh + ((_ONE - tanh * tanh) * share) * z
