"""The positions of largest norm: a biased estimator, for comparison."""

import warnings
from dataclasses import dataclass
from functools import cache

from .base import CELLS
from .sample_plan import Plan
from .sampled import Sampled
from .samplers import Largest
from .sampling_units import ROWS


@dataclass(frozen=True)
class BiasedTopK(Sampled):
    """Keep the ``k = ⌊p·N·I⌋`` (example, position) pairs of largest norm, with weight 1. **Biased**: see below.

    What is dropped is always what is small, so no average over draws brings it back: the error is all bias,
    ``‖Σ_{s dropped} x_s V_s‖``, and repeats in every step. Positions of small but consistent input never contribute.
    ``unbiased`` is false and the first use in a process warns. Input positions for a weight VJP, output positions for
    an input VJP; bytes as for :class:`NormSpatial`.

    Source: Adelman et al., Faster neural network training with approximate tensor operations, NeurIPS 2021
    (arXiv:1805.08079), section 3.2; Sun et al., meProp, ICML 2017 (arXiv:1706.06197).

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        center: Whether to keep the spatial mean of each example and channel exactly; a number means the block means of
            :class:`LowResolution` instead, with cells of that size. That is not the default here,
            to be what the literature calls top-k.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> BiasedTopK(keep=0.25).unbiased
        False
    """

    unit, sampler, allowed = ROWS, Largest(), {"center": CELLS}
    center: bool | int = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _warn_once()

    def _variance(self, plan: Plan) -> str:
        return "0; the bias is Σ_{s dropped} x_s V_s"


@cache
def _warn_once() -> None:
    warnings.warn("BiasedTopK is biased: its estimates do not average to the gradient", stacklevel=4)
