"""Channels drawn with probabilities in proportion to their norms."""

from dataclasses import dataclass

from .base import SHARE
from .channel_unit import CHANNELS
from .sample_plan import Plan
from .sampled import Sampled
from .samplers import ByNorm, Sampler


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
