"""Apply estimators to the layers of an existing model, and undo it."""

from .convert import Layers, RandomizedHandle, randomize
from .per_layer import Estimators
from .presets import PRESETS, UNSET, PresetName, Settings, Unset

__all__ = [
    "PRESETS",
    "UNSET",
    "Estimators",
    "Layers",
    "PresetName",
    "RandomizedHandle",
    "Settings",
    "Unset",
    "randomize",
]
