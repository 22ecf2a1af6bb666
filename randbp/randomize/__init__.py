"""Apply estimators to the layers of an existing model, and undo it."""

from .convert import Layers, RandomizedHandle, randomize
from .per_layer import Estimators

__all__ = ["Estimators", "Layers", "RandomizedHandle", "randomize"]
