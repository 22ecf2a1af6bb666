"""Choose an estimator for each layer: the least gradient variance at a budget of memory or time."""

from .assignment import Assignment, UnreachableBudget, assign
from .autotune import CANDIDATES, autotune
from .options import LayerOptions, Option

__all__ = ["CANDIDATES", "Assignment", "LayerOptions", "Option", "UnreachableBudget", "assign", "autotune"]
