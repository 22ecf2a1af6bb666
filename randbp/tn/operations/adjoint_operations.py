"""Operations of a transposed convolution that is given as its adjoint: ``conv_transpose(spec)`` and its like.

The spec is that of the convolution with the same weight: the transposed convolution maps ``spec.output_shape`` to
``spec.input_shape``. `randbp.tn.transposed_spec` makes it from PyTorch's arguments. Each function here is short for
another one with ``tn.ConvTransposeSpec(spec)``.

Example:
    >>> import torch
    >>> from randbp import tn
    >>> x, w = torch.randn(2, 3, 5, 5), torch.randn(3, 4, 3, 3)
    >>> spec = tn.transposed_spec((2, 3, 5, 5), out_channels=4, kernel_size=3, stride=2)
    >>> y = tn.conv_transpose(spec).contract(input=x, weight=w)
    >>> torch.allclose(y, torch.conv_transpose2d(x, w, stride=2), atol=1e-5)
    True
    >>> u = tn.unfold_transpose(spec).contract(input=x)  # which makes it a matrix product
    >>> torch.allclose((w.permute(1, 0, 2, 3).flatten(1) @ u).view(y.shape), y, atol=1e-4)
    True
    >>> tn.conv_transpose_weight_vjp(spec) == tn.weight_vjp(tn.ConvTransposeSpec(spec))
    True
"""

from collections.abc import Callable
from functools import lru_cache

from ...layers.layer_specs import ConvTransposeSpec, LayerSpec
from ...layers.spec import ConvSpec
from ..interface import TensorNetwork
from . import curvature, layer_derivatives


def _of_adjoint(name: str, operation: Callable[[LayerSpec], TensorNetwork]) -> Callable[[ConvSpec], TensorNetwork]:
    @lru_cache(maxsize=1024)
    def made(spec: ConvSpec) -> TensorNetwork:
        return operation(ConvTransposeSpec(spec)).named(name)

    made.__name__ = made.__qualname__ = name
    made.__doc__ = f"`randbp.tn.{operation.__name__}` of the transposed convolution whose adjoint the spec is."
    return made


conv_transpose = _of_adjoint("conv_transpose", layer_derivatives.conv)
conv_transpose_weight_vjp = _of_adjoint("conv_transpose_weight_vjp", layer_derivatives.weight_vjp)
conv_transpose_input_vjp = _of_adjoint("conv_transpose_input_vjp", layer_derivatives.input_vjp)
conv_transpose_weight_jvp = _of_adjoint("conv_transpose_weight_jvp", layer_derivatives.weight_jvp)
conv_transpose_input_jvp = _of_adjoint("conv_transpose_input_jvp", layer_derivatives.input_jvp)
conv_transpose_per_example_weight_vjp = _of_adjoint(
    "conv_transpose_per_example_weight_vjp", layer_derivatives.per_example_weight_vjp
)
unfold_transpose = _of_adjoint("unfold_transpose", layer_derivatives.unfold)
kfac_expand_transpose = _of_adjoint("kfac_expand_transpose", curvature.kfac_expand)
kfac_reduce_transpose = _of_adjoint("kfac_reduce_transpose", curvature.kfac_reduce)
