"""One estimator of each kind whose sizes are fixed by shape and keep rate."""

from randbp import (
    Axes,
    Batch,
    Channels,
    LowResolution,
    NormChannels,
    NormSpatial,
    Precision,
    Projection,
    Rounding,
    Spatial,
)

FIXED_SIZE = [
    Spatial(0.25),
    Spatial(0.25, center=False),
    Spatial(0.25, per_example=False),
    Axes(0.25),
    Channels(0.25),
    Batch(0.25),
    Batch(0.5, center=True),
    LowResolution(0.25),
    NormSpatial(0.25),
    NormSpatial(0.25, center=False, top=0.5),
    NormChannels(0.25),
    Projection(0.25),
    Projection(0.25, kind="gaussian"),
    Rounding(4),
    Rounding(3, block="channel"),
    Rounding(4, Spatial(0.5)),
    Precision(),
    Precision(estimator=Rounding(4)),
]
