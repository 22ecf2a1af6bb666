"""Estimators: each decides which part of a saved tensor or contraction is kept, and with which weights."""

from ..draws.draw import Draw
from ..draws.seeds import manual_seed
from .axes import Axes
from .base import Estimator
from .batch import Batch
from .by_norm import BiasedTopK, NormChannels, NormSpatial
from .description import Description
from .exact import Exact
from .if_faster import IfFaster
from .importance import Importance
from .low_resolution import LowResolution
from .plain import configure, plain_estimator
from .precision import Precision
from .projection import Projection
from .rounding import Rounding
from .sampled_channels import Channels
from .spatial import Spatial

__all__ = [
    "Axes",
    "Batch",
    "BiasedTopK",
    "Channels",
    "Description",
    "Draw",
    "Estimator",
    "Exact",
    "IfFaster",
    "Importance",
    "LowResolution",
    "NormChannels",
    "NormSpatial",
    "Precision",
    "Projection",
    "Rounding",
    "Spatial",
    "configure",
    "manual_seed",
    "plain_estimator",
]
