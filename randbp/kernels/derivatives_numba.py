"""Derivatives of smooth activations for numba's kernels: see :mod:`.derivatives`."""

import numpy as np

from . import derivatives as of
from .instructions_numba import left, number_of, subtract
from .jit import function, inlined

_1, _23 = np.int32(1), np.int32(23)


@inlined
def _where(condition, x, y):
    return x if condition else y


@inlined
def _divided(x, y):
    return x / y


@inlined
def _within(x, limit):
    return _least(-limit if x < -limit else x, limit)


@inlined
def _least(x, limit):
    return limit if x > limit else x


@inlined
def _power_of_two(x):
    return number_of(left(subtract(x, _1), _23))


_WORDS = {
    **{"where": _where, "magnitude": abs, "least": _least, "divided": _divided, "within": _within},
    **{"integer": np.int32, "real": np.float32, "power_of_two": _power_of_two},
    **{name.upper(): number for number, name in enumerate(of.FUNCTIONS)},
}

_at = of.translated(inlined, __name__, _WORDS, np.float32)["at"]


@inlined
def _each(x, size, function, parameters, out):
    factor, second, third = parameters[0], parameters[1], parameters[2]
    for i in range(size):
        out[i] = _at(x[i], function, factor, second, third)


@function
def derivative(x, size, function, parameters, out):
    """Put the derivatives at ``size`` numbers ``x`` into ``out``: pointers to places that do not overlap.

    Each activation, given by its place among :data:`.derivatives.FUNCTIONS`, has a loop of its own, without branches.
    """
    if function == 0:
        _each(x, size, 0, parameters, out)
    elif function == 1:
        _each(x, size, 1, parameters, out)
    elif function == 2:
        _each(x, size, 2, parameters, out)
    elif function == 3:
        _each(x, size, 3, parameters, out)
    elif function == 4:
        _each(x, size, 4, parameters, out)
    elif function == 5:
        _each(x, size, 5, parameters, out)
    elif function == 6:
        _each(x, size, 6, parameters, out)
    elif function == 7:
        _each(x, size, 7, parameters, out)
    elif function == 8:
        _each(x, size, 8, parameters, out)
    else:
        _each(x, size, 9, parameters, out)
