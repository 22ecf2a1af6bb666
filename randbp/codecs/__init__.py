"""How a tensor is held in few bits: encode, decode (all of it or some rows), bytes and variance."""

from .blocks import Blocks
from .codes import Codes
from .flat import Flat
from .geometric import Geometric
from .grid import Grid
from .mask import Mask
from .stream import Stream
from .uniform import Uniform

__all__ = ["Blocks", "Codes", "Flat", "Geometric", "Grid", "Mask", "Stream", "Uniform"]
