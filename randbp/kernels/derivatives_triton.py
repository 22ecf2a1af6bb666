"""Derivatives of smooth activations for Triton's kernels: see :mod:`.derivatives`."""

import triton
import triton.language as tl

from . import derivatives as of
from .basics_triton import divided


@triton.jit
def _where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def _magnitude(x):
    return tl.abs(x)


@triton.jit
def _least(x, limit):
    return tl.minimum(x, limit)


@triton.jit
def _divided(x, y):
    return divided(tl.zeros_like(y) + x, y)


@triton.jit
def _within(x, limit):
    return tl.minimum(tl.maximum(x, -limit), limit)


@triton.jit
def _integer(x):
    return x.to(tl.int32)


@triton.jit
def _real(x):
    return x.to(tl.float32)


@triton.jit
def _power_of_two(x):
    return ((x - 1) << 23).to(tl.float32, bitcast=True)


WORDS = {
    **{"tl": tl, "where": _where, "magnitude": _magnitude, "least": _least, "within": _within, "divided": _divided},
    **{"integer": _integer, "real": _real, "power_of_two": _power_of_two},
    **{name.upper(): tl.constexpr(name) for name in of.FUNCTIONS},
}

derivative = of.translated(triton.jit, __name__, WORDS, tl.constexpr)["at"]
"""``derivative(x, FUNCTION, factor, second, third)``, of an activation in single precision."""
