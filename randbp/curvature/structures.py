"""The table of structures that a Kronecker factor of SINGD can have."""

from collections.abc import Callable

from .hierarchical_matrices import Hierarchical
from .structured_matrices import BlockDiagonal, Dense, Diagonal, Triangular

STRUCTURES: dict[str, Callable[[int], Dense]] = {
    "dense": Dense,
    "diagonal": Diagonal,
    "block": BlockDiagonal,
    "triangular": Triangular,
    "hierarchical": Hierarchical,
}
"""Structures by name, each a function of the number of rows."""
