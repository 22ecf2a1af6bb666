"""Layers with an exact forward pass whose backward pass is an estimator."""

from .call import Call, check_arguments, check_estimator, is_estimated
from .estimated import estimated

__all__ = ["Call", "check_arguments", "check_estimator", "estimated", "is_estimated"]
