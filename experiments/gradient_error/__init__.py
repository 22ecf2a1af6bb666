"""The reference curve: relative error of estimated gradients of an untrained network against the keep rate.

``python -m experiments gradient-error`` measures how far the gradient of All-CNN-C's kernels is from the exact one
when the weight VJPs are estimated: the channel and spatial sampling of the literature, and randbp's estimators.
"""

from experiments.gradient_error.command import main

__all__ = ["main"]
