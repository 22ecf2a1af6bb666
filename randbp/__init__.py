"""randbp: approximate backpropagation with tensor dropout.

Convolutions, transposed convolutions and linear layers keep an exact forward pass; their vector-Jacobian products are
replaced by cheaper unbiased estimates.
"""

from . import functional
from ._moved import find_what_is_gone
from .estimators import (
    Axes,
    Batch,
    BiasedTopK,
    Channels,
    Description,
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
    manual_seed,
)
from .randomize import RandomizedHandle, randomize
from .tune import advise, autotune

__version__ = "0.1.0"

find_what_is_gone()

__all__ = [
    "Axes",
    "Batch",
    "BiasedTopK",
    "Channels",
    "Description",
    "Estimator",
    "Exact",
    "IfFaster",
    "Importance",
    "LowResolution",
    "NormChannels",
    "NormSpatial",
    "Precision",
    "Projection",
    "RandomizedHandle",
    "Rounding",
    "Spatial",
    "__version__",
    "advise",
    "autotune",
    "functional",
    "manual_seed",
    "randomize",
]
