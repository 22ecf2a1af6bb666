"""Choose an estimator for each layer at a budget of memory or time, or a setting in which a batch fits."""

from .advice import Advice, AdviceRow
from .assignment import Assignment, UnreachableBudget, assign
from .autotune import CANDIDATES, autotune
from .model_advice import advise
from .options import LayerOptions, Option

__all__ = [
    "CANDIDATES",
    "Advice",
    "AdviceRow",
    "Assignment",
    "LayerOptions",
    "Option",
    "UnreachableBudget",
    "advise",
    "assign",
    "autotune",
]
