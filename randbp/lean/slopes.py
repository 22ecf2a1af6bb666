"""Storage of elementwise derivatives: on a fixed grid if their range is known, else in blocks."""

from ..codecs import Blocks, Geometric, Grid

Slopes = Grid | Blocks | Geometric
"""The codecs for derivatives."""


def slopes(bits: int, poles: bool) -> Blocks | Geometric:
    """Storage for derivatives of unknown range; with poles, in one more bit and with small relative errors."""
    return Geometric(min(8, bits + 1)) if poles else Blocks(bits)
