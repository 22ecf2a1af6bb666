"""Operations with an exact forward pass whose backward pass is an estimator."""

from .estimated import estimated
from .operations import Convolution, Linear, Operation, TransposedConvolution

__all__ = ["Convolution", "Linear", "Operation", "TransposedConvolution", "estimated"]
