"""All estimators, and all functions with a lean rule: the lists that generic tests run over.

A new estimator is one line here; a test finds out if it is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from randbp import (
    Axes,
    Batch,
    BiasedTopK,
    Channels,
    Estimator,
    Exact,
    IfFaster,
    Importance,
    LowResolution,
    NormChannels,
    NormSpatial,
    Precision,
    Projection,
    Rounding,
    Spatial,
)

WEIGHT = frozenset({"weight_vjp"})
BOTH = frozenset({"weight_vjp", "input_vjp"})
LAYERS = frozenset({"convolution", "transposed convolution", "linear"})


@dataclass(frozen=True)
class EstimatorCase:
    """An estimator with one choice of its settings.

    Attributes:
        name: Of the choice.
        make: The estimator at a keep rate, with blocks that are small beside generated layers.
        real: The same for layers of real size, with the keep rate that tests of whole layers use; ``None`` where it
            would show nothing there that others do not.
        vjps: What it serves.
        layers: The kinds of layers that it serves.
        exact: Whether it is the exact VJP at any rate.
        biased: Whether its mean over draws is another one than the exact VJP.
        fixed_size: Whether what it holds has a size that does not depend on the draw.
        narrow: Whether it multiplies in a narrower type, whose sums differ from exact ones in more digits.
        chooses: Whether it only chooses between estimators.
        counted: Whether what it multiplies are products and convolutions that PyTorch counts, and stated.
    """

    name: str
    make: Callable[[float], Estimator]
    real: Estimator | None = None
    vjps: frozenset[str] = BOTH
    layers: frozenset[str] = LAYERS
    exact: bool = False
    biased: bool = False
    fixed_size: bool = True
    narrow: bool = False
    chooses: bool = False
    counted: bool = True

    def __str__(self) -> str:
        return self.name


ESTIMATORS: tuple[EstimatorCase, ...] = (
    EstimatorCase("exact", lambda keep: Exact(), exact=True),
    EstimatorCase("spatial", Spatial, Spatial(0.25)),
    EstimatorCase(
        "spatial shared", lambda keep: Spatial(keep, per_example=False), Spatial(0.25, per_example=False), counted=False
    ),
    EstimatorCase("spatial raw", lambda keep: Spatial(keep, center=False), Spatial(0.25, center=False)),
    EstimatorCase("axes", Axes, Axes(0.25)),
    EstimatorCase("axes bernoulli", lambda keep: Axes(keep, bernoulli=True), fixed_size=False, counted=False),
    EstimatorCase("channels", Channels, Channels(0.25)),
    EstimatorCase("channels bernoulli", lambda keep: Channels(keep, bernoulli=True), fixed_size=False, counted=False),
    EstimatorCase("batch", Batch, Batch(0.25), WEIGHT),
    EstimatorCase(
        "batch bernoulli", lambda keep: Batch(keep, bernoulli=True), None, WEIGHT, fixed_size=False, counted=False
    ),
    EstimatorCase("batch centred", lambda keep: Batch(keep, center=True), Batch(0.5, center=True), WEIGHT),
    EstimatorCase("low resolution", lambda keep: LowResolution(keep, block=2), LowResolution(0.25)),
    EstimatorCase("norm spatial", NormSpatial, NormSpatial(0.25)),
    EstimatorCase("norm spatial raw", lambda keep: NormSpatial(keep, center=False)),
    EstimatorCase("norm spatial cells", lambda keep: NormSpatial(keep, center=2)),
    EstimatorCase(
        "norm spatial top",
        lambda keep: NormSpatial(keep, center=False, top=0.4),
        NormSpatial(0.25, center=False, top=0.5),
    ),
    EstimatorCase("norm channels", NormChannels, NormChannels(0.25)),
    EstimatorCase("norm channels top", lambda keep: NormChannels(keep, top=0.4)),
    EstimatorCase("projection rademacher", Projection, Projection(0.25)),
    EstimatorCase(
        "projection gaussian",
        lambda keep: Projection(keep, kind="gaussian", block=5),
        Projection(0.25, kind="gaussian"),
    ),
    EstimatorCase("rounding", lambda keep: Rounding(_bits(keep), block=16), Rounding(4), WEIGHT),
    EstimatorCase(
        "rounding per channel",
        lambda keep: Rounding(_bits(keep), block="channel"),
        Rounding(3, block="channel"),
        WEIGHT,
    ),
    EstimatorCase(
        "rounded sample",
        lambda keep: Rounding(2, Spatial(keep), block=16),
        Rounding(4, Spatial(0.5)),
        WEIGHT,
        counted=False,
    ),
    EstimatorCase("rounded norm sample", lambda keep: Rounding(2, NormSpatial(keep, center=2), block=16), None, WEIGHT),
    EstimatorCase(
        "rounded low resolution", lambda keep: Rounding(5, LowResolution(keep, block=2), block=16), None, WEIGHT
    ),
    EstimatorCase("narrow", lambda keep: Precision(), Precision(), narrow=True),
    EstimatorCase(
        "narrow rounded",
        lambda keep: Precision("float16", Rounding(3, block=16)),
        Precision(estimator=Rounding(4)),
        WEIGHT,
        narrow=True,
    ),
    EstimatorCase("importance", Importance, Importance(0.25)),
    EstimatorCase("importance in bits", lambda keep: Importance(keep, bits=4), Importance(0.5, bits=4), counted=False),
    EstimatorCase("importance of examples", lambda keep: Importance(keep, "examples"), Importance(0.5, "examples")),
    EstimatorCase("top k", BiasedTopK, BiasedTopK(0.25), biased=True),
    EstimatorCase("top k of cells", lambda keep: BiasedTopK(keep, center=2), biased=True),
    EstimatorCase("if faster", lambda keep: IfFaster(Spatial(keep)), IfFaster(Spatial(0.25)), chooses=True),
)


def _bits(keep: float) -> int:
    """Bits that mean for rounding about what a keep rate means for a sampler."""
    return max(1, round(6 * keep))


def named(*names: str) -> list[EstimatorCase]:
    """Entries by name, in this order."""
    by_name = {case.name: case for case in ESTIMATORS}
    return [by_name[name] for name in names]


FIXED_SIZE: list[Estimator] = [
    case.real for case in ESTIMATORS if case.real is not None and case.fixed_size and not (case.biased or case.chooses)
]
"""Estimators for layers of real size, of which each draw holds the same bytes and has a mean of its own."""

EXACT_AT_ONE: list[EstimatorCase] = [
    case
    for case in ESTIMATORS
    if not (case.narrow or case.chooses or isinstance(case.make(0.5), Rounding) or case.name == "importance in bits")
]
"""Those of which a keep rate of 1 leaves nothing out."""

DRAWN_OF_EACH_KIND: list[Estimator] = [
    case.make(keep)
    for case, keep in zip(named("spatial", "axes bernoulli", "batch bernoulli"), (0.25, 0.3, 0.5), strict=True)
]
"""Few estimators for long tests of when samples are drawn: of a fixed size, of a size that is drawn, of examples."""
