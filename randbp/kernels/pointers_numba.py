"""Places in the memory of arrays, for numba's kernels.

Arrays and their slices are counted by each function that they are given to, and an index is looked at whether it counts
from the end: on blocks of a few hundred entries that takes as long as the work. A pointer is an address.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import function


def _at(typing_context, array, index):
    def place(context, builder, signature, arguments):
        memory = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(memory, [arguments[1]])

    return (types.CPointer(array.dtype)(array, types.intp), place) if array.layout == "C" else None


def _beyond(typing_context, pointer, count):
    def place(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.intp), place


at: Any = intrinsic(_at)
"""Where an entry of an array without gaps lies, by its flat index."""

beyond: Any = intrinsic(_beyond)
"""The place so many entries further on."""


@function
def part_of(room, task):
    """The part ``[task]`` of an array of several dimensions."""
    return at(room, task * (room.size // len(room)))


def _reading(kind: Any) -> Any:
    """The function that reads memory as entries of that kind."""

    @intrinsic
    def read(typing_context, pointer):
        return types.CPointer(kind)(pointer), _same_place

    return read


def _same_place(context, builder, signature, arguments):
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


as_bytes, as_signed, as_unsigned = _reading(types.uint8), _reading(types.int32), _reading(types.uint32)
"""Memory read as ``uint8``, ``int32``, ``uint32``."""
