"""Operations with an exact forward pass whose backward pass is an estimator."""

from .compiled import draw_seed
from .estimated import estimated
from .operations import Convolution, Linear, Operation, Product, TransposedConvolution

__all__ = ["Convolution", "Linear", "Operation", "Product", "TransposedConvolution", "draw_seed", "estimated"]
