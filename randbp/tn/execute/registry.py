"""All kernels, in the order in which they are asked whether they fit a step."""

from typing import Any

from ..planning.steps import Join
from . import diagonals
from .convolutions import Forward, InputGradient, WeightGradient
from .grams import WindowGram
from .kernel import Kernel
from .lines import LineProducts
from .matrix_products import MatrixProduct
from .pattern_steps import BandedSums, WindowsOrPlaces
from .selection_steps import GatherOrScatter, RowProduct

KERNELS: tuple[Kernel, ...] = (
    WindowGram(),
    MatrixProduct(),
    BandedSums(),
    WindowsOrPlaces(),
    GatherOrScatter(),
    RowProduct(),
    *diagonals.WAYS,
    LineProducts(),
    WeightGradient(),
    Forward(),
    InputGradient(),
)

_BY_JOIN: dict[tuple[int, type | None], list[Kernel]] = {}
for _kernel in KERNELS:
    _BY_JOIN.setdefault(_kernel.joins, []).append(_kernel)


def choose(join: Join) -> tuple[Kernel, Any] | None:
    """The kernel for a step, which the search prices and the lowering runs, with what its ``fits`` returned.

    The first one that fits is taken: special ones, which fit where they are faster, stand before general ones.
    """
    kinds = len(join.tensors), None if join.relation is None else type(join.relation)
    for kernel in _BY_JOIN[kinds]:
        form = kernel.fits(join)
        if form:
            return kernel, form
    return None
