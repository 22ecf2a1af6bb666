"""How many neighbouring positions are kept together: longer runs are read and multiplied faster."""

from functools import lru_cache

from ..tn import LayerSpec, LinearSpec, PositionClass
from .run_products import serves

LONGEST, LONGEST_DEPTHWISE = 16, 32  # positions; with one channel per group, reading them is all the work
SHORTEST = 4  # below it, indices cost more than they save
LOST = 1 / 10  # of the positions that could be kept, the share that may be lost to whole runs


@lru_cache(maxsize=1024)
def run_length(spec: LayerSpec, positions: PositionClass, count: int) -> int:
    """How many neighbouring inputs of a class to keep together, if so many are to be kept; 1 for none.

    That is the longest of 4 to 16 (in depthwise layers 32) that divides each row of the class, leaves two runs at least
    and loses little of the count. Where each position meets one output, runs may go on in the next row.

    Example:
        >>> from randbp import tn
        >>> layer = tn.ConvSpec((1, 1, 28, 28), 1, kernel_size=3, padding=1)
        >>> everywhere, = tn.position_classes(layer, "input")
        >>> [run_length(layer, everywhere, count) for count in (392, 98, 22, 11)]
        [14, 14, 7, 1]
    """
    if isinstance(spec, LinearSpec) or not spec.dims:
        return 1  # channels, not positions, of a sequence lie side by side
    longest = LONGEST_DEPTHWISE if spec.groups == spec.in_channels > 1 else LONGEST
    row = positions.size if positions.is_pointwise else len(positions.positions[-1])
    for length in range(min(longest, count // 2), SHORTEST - 1, -1):
        divides = row % length == 0 and count % length <= LOST * count
        if divides and (positions.is_pointwise or serves(spec, positions, length)):
            return length
    return 1
