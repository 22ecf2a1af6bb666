"""How derivatives of elementwise functions are held: on a fixed grid where their range is known, else in blocks."""

from ..codecs import Blocks, Geometric, Grid

Slopes = Grid | Blocks | Geometric
"""How derivatives may be held."""


def slopes(bits: int, poles: bool) -> Blocks | Geometric:
    """How derivatives of unknown range are held: those with poles in one more bit, with small relative errors."""
    return Geometric(min(8, bits + 1)) if poles else Blocks(bits)
