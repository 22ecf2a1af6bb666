"""Channels drawn without replacement: the VJP is that of a smaller layer with the kept channels."""

from dataclasses import dataclass

from .channel_unit import CHANNELS
from .sample_plan import Plan
from .sampled import Sampled
from .samplers import Bernoulli, Sampler, Uniform


@dataclass(frozen=True)
class Channels(Sampled):
    """Keep channels, drawn without replacement: input channels for a weight VJP, output channels for an input VJP.

    Each group keeps ``⌊p·C⌋`` channels of its own with weight ``C/|S|``. Groups too narrow for that (depthwise
    convolutions) are themselves kept or dropped as a whole. In the weight VJP the channel is an open leg: the
    gradient of a dropped channel is zero, and the relative error is ``√(1/p - 1)`` whatever the data.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        bernoulli: If true, each channel of a group (the same in all groups) is kept on its own with probability ``p``
            and weight ``1/p``, as in the reference curve; memory is then random, and a draw may keep nothing.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Channels(keep=0.5)
        Channels(keep=0.5, bernoulli=False)
    """

    unit = CHANNELS
    bernoulli: bool = False

    @property
    def sampler(self) -> Sampler:
        """A fixed number of channels, or each on its own."""
        return Bernoulli() if self.bernoulli else Uniform()

    def _relative_variance(self, plan: Plan) -> float:
        return 1 / plan.share - 1

    def _variance(self, plan: Plan) -> str:
        return "1/p - 1, p the share kept"
