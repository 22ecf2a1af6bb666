"""How a tensor is held in few bits: encode, decode (all of it or some rows), bytes and variance."""

from .stream import Stream
from .uniform import Uniform

__all__ = ["Stream", "Uniform"]
