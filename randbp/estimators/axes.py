"""Separable spatial sampling: rows times columns."""

from dataclasses import dataclass

from .sample_plan import Plan
from .sampled import Sampled
from .samplers import Crossings, Sampler


@dataclass(frozen=True)
class Axes(Sampled):
    """Keep a grid of rows and columns (and planes …) that the whole batch shares: the estimator of the reference curve.

    Each of ``d`` spatial axes keeps the share ``p^(1/d)`` of its coordinates: input coordinates for a weight VJP,
    output coordinates for an input VJP. Kept positions are multiplied one by one; in narrow layers, and where a stride
    divides positions into classes, the VJP is the exact one of a tensor with zeros.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]`` of all axes together.
        bernoulli: If false, a fixed number per axis is drawn without replacement, as many as ``p`` allows. If true,
            each coordinate is kept on its own with probability ``p^(1/d)`` and weight ``p^(-1/d)``; the number kept,
            and with it the memory, is then random, and a draw may keep nothing.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Axes(keep=0.25)
        Axes(keep=0.25, bernoulli=False)
    """

    bernoulli: bool = False

    @property
    def sampler(self) -> Sampler:
        """Crossings of kept rows and columns."""
        return Crossings(self.bernoulli)

    def _variance(self, plan: Plan) -> str:
        return "(1/p^(1/d) - 1) per axis of the contributions summed over the others (Bernoulli), less if fixed-size"
