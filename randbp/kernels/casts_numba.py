"""Numbers as the integers of the same bits, and back, for numba's kernels."""

from typing import Any

from numba import types
from numba.extending import intrinsic

_INTEGERS: dict[Any, Any] = {types.float32: types.int32, types.float64: types.int64}


def _reading(kinds: dict[Any, Any]) -> Any:
    """The function that reads the bits of one kind as another."""

    @intrinsic
    def cast(typing_context, value):
        return kinds[value](value), _cast

    return cast


def _cast(context, builder, signature, arguments):
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


bits_of = _reading(_INTEGERS)
"""The signed integer that has the bits of a floating number."""

number_of = _reading({integer: number for number, integer in _INTEGERS.items()})
"""The floating number that has the bits of a signed integer."""


def _converted(typing_context, value, like):
    def convert(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], *signature.args)

    return like(value, like), convert


converted: Any = intrinsic(_converted)
"""A number as one of another's type."""
