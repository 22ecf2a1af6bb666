"""Tensor networks of convolutions: networks, operations, contraction plans, diagrams.

Leg names: batch ``n``, group ``g``, channels in and out per group ``c`` and ``d``, and per spatial dimension
input ``i1 i2 …``, output ``o1 o2 …`` and kernel ``k1 k2 …``. The second half of a Gram matrix carries primes.
"""

from ..layers.layer_specs import ConvTransposeSpec, LayerSpec, LinearSpec, linear_spec
from ..layers.pattern import IndexPattern
from ..layers.spec import ConvSpec, transposed_spec
from .interface import TensorNetwork
from .nodes import Axis, Operand, Pattern, Selection
from .operations.adjoint_operations import (
    conv_transpose,
    conv_transpose_input_jvp,
    conv_transpose_input_vjp,
    conv_transpose_per_example_weight_vjp,
    conv_transpose_weight_jvp,
    conv_transpose_weight_vjp,
    kfac_expand_transpose,
    kfac_reduce_transpose,
    unfold_transpose,
)
from .operations.curvature import (
    ggn_diagonal,
    gradient_gram,
    kfac_expand,
    kfac_expand_output_grad,
    kfac_reduce,
    kfac_reduce_output_grad,
    squared_gradient_norms,
)
from .operations.layer_derivatives import (
    conv,
    fold,
    input_jvp,
    input_vjp,
    per_example_weight_vjp,
    unfold,
    unfolded_kernel,
    weight_jvp,
    weight_vjp,
)
from .operations.position_classes import (
    PositionClass,
    constant_input_weight_vjp,
    constant_output_grad_input_vjp,
    input_vjp_of_positions,
    position_classes,
    weight_vjp_of_positions,
    whole_class,
)
from .planning.path_report import PathReport
from .planning.plan import Plan, Step
from .planning.plan_cache import CacheInfo, PlanCache, cache
from .sampling import Sample, sampled

__all__ = [
    "Axis",
    "CacheInfo",
    "ConvSpec",
    "ConvTransposeSpec",
    "IndexPattern",
    "LayerSpec",
    "LinearSpec",
    "Operand",
    "PathReport",
    "Pattern",
    "Plan",
    "PlanCache",
    "PositionClass",
    "Sample",
    "Selection",
    "Step",
    "TensorNetwork",
    "cache",
    "constant_input_weight_vjp",
    "constant_output_grad_input_vjp",
    "conv",
    "conv_transpose",
    "conv_transpose_input_jvp",
    "conv_transpose_input_vjp",
    "conv_transpose_per_example_weight_vjp",
    "conv_transpose_weight_jvp",
    "conv_transpose_weight_vjp",
    "fold",
    "ggn_diagonal",
    "gradient_gram",
    "input_jvp",
    "input_vjp",
    "input_vjp_of_positions",
    "kfac_expand",
    "kfac_expand_output_grad",
    "kfac_expand_transpose",
    "kfac_reduce",
    "kfac_reduce_output_grad",
    "kfac_reduce_transpose",
    "linear_spec",
    "per_example_weight_vjp",
    "position_classes",
    "sampled",
    "squared_gradient_norms",
    "transposed_spec",
    "unfold",
    "unfold_transpose",
    "unfolded_kernel",
    "weight_jvp",
    "weight_vjp",
    "weight_vjp_of_positions",
    "whole_class",
]
