"""Layers: the rule that decides which modules are layers, and the layer functions that a forward pass calls."""

from .calls import LayerCall, LayerCalls, answered, parsed
from .rule import (
    Layer,
    class_runs_pytorchs_forward,
    has_class_forward,
    is_convolution,
    kind_of,
    layer,
    own_parameters,
    runs_pytorchs_forward,
    weights,
)

__all__ = [
    "Layer",
    "LayerCall",
    "LayerCalls",
    "answered",
    "class_runs_pytorchs_forward",
    "has_class_forward",
    "is_convolution",
    "kind_of",
    "layer",
    "own_parameters",
    "parsed",
    "runs_pytorchs_forward",
    "weights",
]
