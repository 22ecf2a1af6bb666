"""Choose an estimator for each layer: the least gradient variance at a budget of memory or time."""

from .assign import UnreachableBudget, assign
from .assignment import Assignment
from .autotune import autotune
from .options import LayerOptions, Option

__all__ = ["Assignment", "LayerOptions", "Option", "UnreachableBudget", "assign", "autotune"]
