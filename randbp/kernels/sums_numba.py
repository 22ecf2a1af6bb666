"""Sums for numba's kernels: in any order that is fast, the same one each time."""

from typing import Any

import numba

_any_order: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})


@_any_order
def dot(left, right):
    """``Σ_i left[i] right[i]`` of as many entries as the left one has."""
    total = left.dtype.type(0)
    for i in range(len(left)):
        total += left[i] * right[i]
    return total


@_any_order
def three_dots(left, first, second, third):
    """The same with three others."""
    zero = left.dtype.type(0)
    a, b, c = zero, zero, zero
    for i in range(len(left)):
        a += left[i] * first[i]
        b += left[i] * second[i]
        c += left[i] * third[i]
    return a, b, c


@_any_order
def total(values):
    """``Σ_i values[i]``."""
    result = values.dtype.type(0)
    for i in range(len(values)):
        result += values[i]
    return result
