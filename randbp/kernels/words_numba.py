"""Arithmetic of integers of 32 bits for numba's kernels: numba itself widens it to 64, which takes twice the time."""

from typing import Any

from numba import types
from numba.extending import intrinsic


def _operation(name: str) -> Any:
    """An operation of two integers of one type by LLVM's instruction of that name; the result is of that type."""

    @intrinsic
    def operation(typing_context, a, b):
        return (a(a, a), _instruction) if isinstance(a, types.Integer) and a == b else None

    def _instruction(context, builder, signature, arguments):
        return getattr(builder, name)(*arguments)

    return operation


add = _operation("add")
subtract = _operation("sub")
multiply = _operation("mul")
left = _operation("shl")
right = _operation("lshr")
right_signed = _operation("ashr")
both = _operation("and_")
either = _operation("or_")
differ = _operation("xor")
