"""Single instructions of a processor for numba's kernels: on integers of 32 bits, on bits of numbers, on pointers.

Numba itself widens integers to 64 bits, which takes twice the time. It counts who refers to an array or a slice in each
function, and asks of each index whether it counts from the end: on blocks of a few hundred entries that takes as long
as the work. A pointer is an address.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import get_host_cpu_features, get_process_triple  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import function

if get_process_triple().startswith("x86") and not get_host_cpu_features().get("f16c"):
    raise ImportError("processor without instructions for half precision")


def _on_two_integers(name: str) -> Any:
    """The operation of two integers of one type by LLVM's instruction of that name; the result is of that type."""

    @intrinsic
    def operation(typing_context, a, b):
        return (a(a, a), instruction) if isinstance(a, types.Integer) and a == b else None

    def instruction(context, builder, signature, arguments):
        return getattr(builder, name)(*arguments)

    return operation


add, subtract, multiply = (_on_two_integers(name) for name in ("add", "sub", "mul"))
left, right, right_signed = (_on_two_integers(name) for name in ("shl", "lshr", "ashr"))
both, either, differ = (_on_two_integers(name) for name in ("and_", "or_", "xor"))


def _read_as(result: Callable[[Any], Any]) -> Any:
    """The function that reads bits of one type as those of another."""

    @intrinsic
    def read(typing_context, value):
        return result(value)(value), bitcast

    def bitcast(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return read


bits_of = _read_as({types.float32: types.int32, types.float64: types.int64}.__getitem__)
"""The signed integer that has the bits of a floating number."""

number_of = _read_as({types.int32: types.float32, types.int64: types.float64}.__getitem__)
"""The floating number that has the bits of a signed integer."""

as_bytes = _read_as(lambda _: types.CPointer(types.uint8))
as_signed = _read_as(lambda _: types.CPointer(types.int32))
as_unsigned = _read_as(lambda _: types.CPointer(types.uint32))
as_floats = _read_as(lambda _: types.CPointer(types.float32))
"""Memory read as ``uint8``, ``int32``, ``uint32``, ``float32``."""


def _half_of(typing_context, number):
    def convert(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), convert


def _number_of_half(typing_context, half):
    def convert(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), convert


def _converted(typing_context, value, like):
    def convert(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], *signature.args)

    return like(value, like), convert


def _multiply_add(typing_context, x, a, b):
    return x(x, x, x), lambda context, builder, signature, arguments: builder.fma(*arguments)


def _at(typing_context, array, index):
    def place(context, builder, signature, arguments):
        memory = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(memory, [arguments[1]])

    return (types.CPointer(array.dtype)(array, types.intp), place) if array.layout == "C" else None


def _beyond(typing_context, pointer, count):
    return pointer(pointer, types.intp), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


half_of: Any = intrinsic(_half_of)
"""The bits of the number of half precision that is nearest to one of single precision."""

number_of_half: Any = intrinsic(_number_of_half)
"""The number of single precision that equals one of half precision with these bits."""

converted: Any = intrinsic(_converted)
"""A number as one of another's type."""

multiply_add: Any = intrinsic(_multiply_add)
"""``x a + b``, rounded once."""

at: Any = intrinsic(_at)
"""Where an entry of an array without gaps lies, by its flat index."""

beyond: Any = intrinsic(_beyond)
"""The place so many entries further on."""


@function
def part_of(room, task):
    """The part ``[task]`` of an array of several dimensions."""
    return at(room, task * (room.size // len(room)))
