"""Spatial positions drawn with probabilities in proportion to their norms."""

from dataclasses import dataclass

from .base import CELLS, SHARE
from .sample_plan import Plan
from .sampled import Sampled
from .samplers import ByNorm, Sampler
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
