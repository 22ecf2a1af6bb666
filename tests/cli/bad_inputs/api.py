"""The Python API."""

from randbp import Spatial

from .rows import Call

ROWS = [
    Call("Spatial(keep=0)", lambda: Spatial(keep=0), says=("keep=0", "expected a number in (0, 1]")),
]
