"""Choose an estimator for each layer at a budget of memory or time, or a setting in which a batch fits."""

from .advice import Advice, AdviceRow
from .advise import advise
from .assignment import Assignment, UnreachableBudget, assign
from .autotune import CANDIDATES, autotune
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
