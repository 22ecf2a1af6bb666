"""randbp: approximate backpropagation with tensor dropout.

Convolutions keep an exact forward pass; their vector-Jacobian products are replaced by cheaper unbiased estimates.
"""

from . import functional
from .estimators import Axes, Batch, Channels, Estimator, Exact, Spatial, manual_seed
from .randomize import RandomizedHandle, randomize

__version__ = "0.1.0"

__all__ = [
    "Axes",
    "Batch",
    "Channels",
    "Estimator",
    "Exact",
    "RandomizedHandle",
    "Spatial",
    "__version__",
    "functional",
    "manual_seed",
    "randomize",
]
