"""Tensor networks of convolutions: index patterns, networks and their contraction."""

from .pattern import IndexPattern
from .spec import ConvSpec

__all__ = ["ConvSpec", "IndexPattern"]
