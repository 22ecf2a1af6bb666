"""Numbers as the integers of the same bits, and back, for numba's kernels."""

from numba import types
from numba.extending import intrinsic

_INTEGERS = {types.float32: types.int32, types.float64: types.int64}
_NUMBERS = {integer: number for number, integer in _INTEGERS.items()}


@intrinsic
def bits_of(typing_context, number):
    """The signed integer that has the bits of a floating number."""
    return _INTEGERS[number](number), _cast


@intrinsic
def number_of(typing_context, bits):
    """The floating number that has the bits of a signed integer."""
    return _NUMBERS[bits](bits), _cast


def _cast(context, builder, signature, arguments):
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))
