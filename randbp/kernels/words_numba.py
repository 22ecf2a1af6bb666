"""Arithmetic modulo ``2^32`` for numba's kernels: numba itself widens it to 64 bits, which takes twice the time."""

from typing import Any

from numba import types
from numba.extending import intrinsic


def _operation(name: str) -> Any:
    """An operation of two ``uint32`` by LLVM's instruction of that name."""

    @intrinsic
    def operation(typing_context, a, b):
        return types.uint32(types.uint32, types.uint32), _instruction

    def _instruction(context, builder, signature, arguments):
        return getattr(builder, name)(*arguments)

    return operation


add = _operation("add")
multiply = _operation("mul")
right = _operation("lshr")
both = _operation("and_")
either = _operation("or_")
differ = _operation("xor")
