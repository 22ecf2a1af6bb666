"""Curvature of a network's loss: Kronecker factors of its layers, operators, per-example gradients, and optimisers."""

from .eigenvalue_corrected import EigenvalueCorrected
from .ekfac import EKFAC
from .factor_passes import ModelFactors
from .inverse import damped_inverses
from .kbfgs import KBFGS
from .kfac import KFAC
from .kfac_operator import KFACOperator
from .kronecker import KroneckerEigen, KroneckerProduct
from .kronecker_bfgs import KroneckerBFGS
from .kronecker_inverse import KroneckerInverse
from .layer_factors import Approximation, input_factor, output_grad_factor
from .linear_operator import LinearOperator
from .linear_operators import GGN, EmpiricalFisher, Hessian, MCFisher
from .low_rank_inverse import LowRankInverse
from .method import Method
from .model_diagonals import ggn_diagonal, hutchinson_diagonal
from .model_factors import factors
from .per_example import per_example_grads, per_example_norms, per_example_square_sum, per_example_variance
from .preconditioner import Preconditioner
from .recursive_diagonal import hessian_diagonal
from .singd import SINGD
from .spectral_estimates import estimate_trace, spectral_density
from .structured_inverse_free import StructuredInverseFree
from .tangent_kernel import ntk

__all__ = [
    "EKFAC",
    "GGN",
    "KBFGS",
    "KFAC",
    "SINGD",
    "Approximation",
    "EigenvalueCorrected",
    "EmpiricalFisher",
    "Hessian",
    "KFACOperator",
    "KroneckerBFGS",
    "KroneckerEigen",
    "KroneckerInverse",
    "KroneckerProduct",
    "LinearOperator",
    "LowRankInverse",
    "MCFisher",
    "Method",
    "ModelFactors",
    "Preconditioner",
    "StructuredInverseFree",
    "damped_inverses",
    "estimate_trace",
    "factors",
    "ggn_diagonal",
    "hessian_diagonal",
    "hutchinson_diagonal",
    "input_factor",
    "ntk",
    "output_grad_factor",
    "per_example_grads",
    "per_example_norms",
    "per_example_square_sum",
    "per_example_variance",
    "spectral_density",
]
