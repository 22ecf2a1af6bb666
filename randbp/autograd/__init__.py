"""Operations with an exact forward pass whose backward pass is an estimator."""

from .compiled import draw_seed
from .estimated import estimated
from .operations import Convolution, Linear, Operation, TransposedConvolution

__all__ = ["Convolution", "Linear", "Operation", "TransposedConvolution", "draw_seed", "estimated"]
