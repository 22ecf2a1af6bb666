"""``python -m experiments demo``: presets beside exact backpropagation and rivals, then keep rates."""

from .run_demo import main

__all__ = ["main"]
