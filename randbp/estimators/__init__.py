"""Estimators: what is kept of a saved tensor or of a contraction, and with which weights."""

from .axes import Axes
from .base import Estimator
from .batch import Batch
from .channels import Channels
from .draw import Draw, manual_seed
from .exact import Exact
from .spatial import Spatial

__all__ = ["Axes", "Batch", "Channels", "Draw", "Estimator", "Exact", "Spatial", "manual_seed"]
