"""Estimators that choose by norm: positions or channels in proportion to it, or the largest positions."""

import warnings
from dataclasses import dataclass
from functools import cache

from .base import CELLS, SHARE
from .channel_unit import CHANNELS
from .sample_plan import Plan
from .sampled import Sampled
from .samplers import ByNorm, Largest, Sampler
from .sampling_units import ROWS


@dataclass(frozen=True)
class NormSpatial(Sampled):
    """Keep a fixed number of (example, position) pairs, drawn without replacement in proportion to their norms.

    A pair's inclusion probability is ``π = min(1, λ‖x‖)`` with ``x`` its entries over the channels (less the spatial
    mean if ``center``) and ``λ`` such that the probabilities add up to the number kept; its weight is ``1/π``. Those
    with ``π = 1`` are kept surely. Of all draws with a given expected size these probabilities have the least variance
    where the other factor is equally large everywhere; as it may not be, a tenth of the mean norm is added to each
    norm, which bounds the weights. The draw is systematic over the whole batch, so examples with larger norms keep
    more, and it is spread evenly over positions. Input positions for a weight VJP, output positions for an input VJP.

    The variance is at most ``Σ_s (1/π_s - 1) ‖x_s‖² ‖V_s‖²`` plus the joint terms of the systematic draw, with
    ``V_s`` the output gradients that pair ``s`` meets, less their mean if ``center``: what the kept deviations add up
    to is taken from the means. Each kept pair holds its entries and an index of 2 or 4 bytes, all within ``p`` of the
    input's bytes (but at least one pair). It saves memory, not time: the VJPs are exact ones of the restored tensor.

    Source: Adelman et al., Faster neural network training with approximate tensor operations, NeurIPS 2021
    (arXiv:1805.08079), who draw columns and rows by norm with replacement; systematic draws are Madow's (1949).

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        center: Whether to keep the spatial mean of each example and channel exactly; a number means the block means of
            :class:`LowResolution` instead, with cells of that size.
        top: Share of the kept pairs, in ``[0, 1)``, that goes to the largest norms without a draw.

    Raises:
        ValueError: If ``keep``, ``center`` or ``top`` is out of range.

    Example:
        >>> NormSpatial(keep=0.25)
        NormSpatial(keep=0.25, center=True, top=0.0)
    """

    unit, allowed = ROWS, {"center": CELLS, "top": SHARE}
    center: bool | int = True
    top: float = 0.0

    @property
    def sampler(self) -> Sampler:
        """By norm."""
        return ByNorm(self.top)

    def _variance(self, plan: Plan) -> str:
        return "Σ_s (1/π_s - 1) ‖x_s‖² ‖V_s‖² and joint terms, π_s = min(1, λ‖x_s‖)"


@dataclass(frozen=True)
class NormChannels(Sampled):
    """Keep a fixed number of channels, drawn without replacement in proportion to their norms.

    Input channels with probabilities ``π_c = min(1, λ‖X_c‖)`` for a weight VJP; for an input VJP output channels with
    ``π_d = min(1, λ‖V_d‖‖W_d‖)``, the optimal ones, as both factors are known there. Weights are ``1/π``, channels with
    ``π = 1`` are always kept, each group keeps ``⌊p·C⌋`` of its channels, and the draw is systematic in a random order.
    Groups too narrow for that (depthwise convolutions) are kept or dropped as a whole. A tenth of the mean norm is
    added to each norm.

    In the weight VJP the channel is an open leg: the variance is ``Σ_c (1/π_c - 1) ‖g_c‖²`` with ``g_c`` the gradient
    of channel ``c``. Held are the kept channels and an index of 2 or 4 bytes for each.

    Source: Adelman et al., Faster neural network training with approximate tensor operations, NeurIPS 2021
    (arXiv:1805.08079).

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        top: Share of the kept channels, in ``[0, 1)``, that goes to the largest norms without a draw.

    Raises:
        ValueError: If ``keep`` or ``top`` is out of range.

    Example:
        >>> NormChannels(keep=0.5, top=0.25)
        NormChannels(keep=0.5, top=0.25)
    """

    unit, allowed = CHANNELS, {"top": SHARE}
    top: float = 0.0

    @property
    def sampler(self) -> Sampler:
        """By norm, in a random order."""
        return ByNorm(self.top, shuffled=True)

    def _variance(self, plan: Plan) -> str:
        return "Σ_c (1/π_c - 1) ‖g_c‖² and joint terms, π_c = min(1, λ‖X_c‖)"


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
