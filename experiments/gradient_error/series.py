"""The estimators that are compared, each one curve."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from randbp.estimators import Axes, Channels, Estimator, Spatial


@dataclass(frozen=True)
class Series:
    """One curve: a label, the estimator at a keep rate, and how it is drawn."""

    label: str
    estimator: Callable[[float], Estimator]
    colour: str
    marker: str
    reference: bool = False


# The published curves: every channel, or every row and column, is kept on its own, with weight 1/p.
REFERENCE_CHANNELS = Series("channels, Bernoulli", partial(Channels, bernoulli=True), "#D55E00", "o", reference=True)
REFERENCE_SPATIAL = Series("spatial axes, Bernoulli", partial(Axes, bernoulli=True), "#0072B2", "s", reference=True)

# Ours draw a fixed number without replacement.
SERIES = (
    REFERENCE_CHANNELS,
    REFERENCE_SPATIAL,
    Series("channels", Channels, "#D55E00", "o"),
    Series("spatial axes", Axes, "#0072B2", "s"),
    Series("pixels, one set per batch", partial(Spatial, per_example=False, center=False), "#CC79A7", "D"),
    Series("pixels, per example", partial(Spatial, center=False), "#009E73", "^"),
    Series("pixels, per example, centred", Spatial, "#222222", "v"),
)
