"""The length of runs, which are neighbouring positions kept together: longer ones are read and multiplied faster."""

from collections.abc import Callable
from functools import lru_cache
from math import prod

from ..tn import LayerSpec, LinearSpec, PositionClass
from .run_products import serves

LONGEST = 16  # the longest run [positions]
LONGEST_WHERE_BOUND = 32  # the same where reading is the only work: depthwise and rebuilt layers [positions]
SHORTEST, SHORTEST_REBUILT = 4, 7  # shorter runs cost more than they save [positions]
LOST = 1 / 10  # share of the budget of positions that may be lost by keeping only whole runs


@lru_cache(maxsize=1024)
def run_length(spec: LayerSpec, positions: PositionClass, count: int) -> int:
    """The run length for a number of kept inputs of a class; 1 means single positions.

    That is the longest of 4 to 16 (in depthwise layers 32) that divides each row of the class, leaves two runs at
    least, loses little of the count, and meets few more outputs than it has positions
    (:func:`~randbp.estimators.run_products.serves`). If each position meets a single output, runs may continue in the
    next row.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((1, 1, 28, 28), 1, kernel_size=3, padding=1)
        >>> everywhere, = tn.position_classes(layer, "input")
        >>> [run_length(layer, everywhere, count) for count in (392, 98, 22)]
        [14, 14, 1]
    """
    if isinstance(spec, LinearSpec):
        return 1  # channels, not positions, of a sequence lie side by side
    if positions.is_pointwise:
        return _longest(positions.size, count, LONGEST)
    longest = LONGEST_WHERE_BOUND if spec.groups == spec.in_channels > 1 else LONGEST
    row = len(positions.positions[-1])
    return _longest(row, count, longest, lambda length: serves(spec, positions, length))


@lru_cache(maxsize=1024)
def rebuilt_run_length(spec: LayerSpec, count: int) -> int:
    """The run length where the input is rebuilt, so that runs need not lie within rows.

    Example:
        >>> from randbp import tn
        >>> rebuilt_run_length(tn.ConvSpec((1, 3, 28, 28), 8, kernel_size=3, stride=2), 196)
        28
    """
    if isinstance(spec, LinearSpec):
        return 1
    return _longest(prod(spec.input_size), count, LONGEST_WHERE_BOUND, lambda length: length >= SHORTEST_REBUILT)


def _longest(size: int, count: int, longest: int, suits: Callable[[int], bool] = lambda length: True) -> int:
    for length in range(min(longest, count // 2), SHORTEST - 1, -1):
        if size % length == 0 and count % length <= LOST * count and suits(length):
            return length
    return 1
