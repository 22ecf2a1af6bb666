"""Apply estimators to the layers of an existing model, and undo it."""

from .convert import Layers, RandomizedHandle, randomize

__all__ = ["Layers", "RandomizedHandle", "randomize"]
