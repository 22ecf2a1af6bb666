"""Curvature of a network's loss: Kronecker factors of its layers, and an optimiser that divides gradients by them."""

from .inverse import damped_inverses
from .kfac import KFAC
from .layer_factors import Approximation, input_factor, output_grad_factor
from .linear_operator import LinearOperator
from .linear_operators import GGN, EmpiricalFisher, Hessian, MCFisher

__all__ = [
    "GGN",
    "KFAC",
    "Approximation",
    "EmpiricalFisher",
    "Hessian",
    "LinearOperator",
    "MCFisher",
    "damped_inverses",
    "input_factor",
    "output_grad_factor",
]
