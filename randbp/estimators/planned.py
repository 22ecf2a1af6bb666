"""Exact VJPs by the kernels that a contraction plan finds fastest, equal to PyTorch's up to rounding."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import tn
from ..draws.draw import Draw
from ..layers.layer_specs import replace_batch
from ..tn import LayerSpec, LinearSpec
from ..tn.execute.convolution_kernels import memory_format_of
from ..tn.execute.kernel import Kind
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from .base import Estimator, Vjp
from .exact import Exact


@dataclass(frozen=True)
class Planned(Exact):
    """The exact VJPs by the kernels of contraction plans: PyTorch's up to rounding.

    Example:
        >>> Planned().exact
        False
    """

    @property
    def exact(self) -> bool:
        """Always false: the result is not PyTorch's bit for bit."""
        return False

    def for_layer(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Estimator:
        """:class:`Exact` where the plan is PyTorch's own kernel, too."""
        return Exact() if isinstance(spec, LinearSpec) or _is_native(spec, spec.batch_size, vjp) else self

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_W = Σ_{n i o} X Π V_Y``."""
        return planned_weight_vjp(held[0], output_grad, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_X = Σ_{d o k} W Π V_Y``."""
        return planned_input_vjp(output_grad, weight, spec)


def planned_weight_vjp(input: Tensor, output_grad: Tensor, spec: LayerSpec) -> Tensor:
    """The full sum ``V_W = Σ_{n i o} X Π V_Y``, for estimators that change or reduce the input.

    Args:
        input: ``[N, C, *I]``; ``N`` need not be the spec's.
        output_grad: ``[N, D, *O]``.
        spec: The layer.
    """
    if not _is_plain(spec, input) and not _takes_any_order(spec, len(input)):
        return native_weight_vjp(input, output_grad, spec)
    return _weight_vjp(spec, len(input)).contract({"input": input, "output_grad": output_grad})


def planned_input_vjp(output_grad: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """The full sum ``V_X = Σ_{d o k} W Π V_Y``, for estimators that reduce the output gradient.

    Args:
        output_grad: ``[N, D, *O]``; ``N`` need not be the spec's.
        weight: The layer's.
        spec: The layer.
    """
    if not _is_plain(spec, output_grad, weight) or _is_native(spec, len(output_grad), "input_vjp"):
        return native_input_vjp(output_grad, weight, spec)
    return _input_vjp(spec, len(output_grad)).contract({"output_grad": output_grad, "weight": weight})


def shared_weight_vjp(input: Tensor, output_grad: Tensor, spec: LayerSpec) -> Tensor:
    """The weight VJP of an input ``[1, C, *I]`` that all examples share: that of one example with the summed gradient.

    Args:
        input: ``[1, C, *I]``.
        output_grad: ``[N, D, *O]``.
        spec: The layer.
    """
    return planned_weight_vjp(input, output_grad.sum(0, keepdim=True), spec)


def _is_plain(spec: LayerSpec, *tensors: Tensor) -> bool:
    """Whether the layer is a convolution of tensors in PyTorch's default memory format."""
    return not isinstance(spec, LinearSpec) and all(memory_format_of(t) == torch.contiguous_format for t in tensors)


@lru_cache(maxsize=512)
def _weight_vjp(spec: LayerSpec, examples: int) -> tn.TensorNetwork:
    layer = replace_batch(spec, examples)
    return tn.weight_vjp_of_positions(layer, tn.whole_class(layer, "input"))


@lru_cache(maxsize=512)
def _takes_any_order(spec: LayerSpec, examples: int) -> bool:
    """Whether the plan of a weight VJP is as fast, or faster, if channels lie innermost in memory."""
    if isinstance(spec, LinearSpec):
        return False
    return any(step.kind is Kind.PAIR_SUMS for step in _weight_vjp(spec, examples).plan().steps)


@lru_cache(maxsize=512)
def _is_native(spec: LayerSpec, examples: int, vjp: Vjp) -> bool:
    """Whether the plan is PyTorch's own kernel, which :func:`native_input_vjp` runs with less scratch memory."""
    network = (_input_vjp if vjp == "input_vjp" else _weight_vjp)(spec, examples)
    return any(step.kind is Kind.NATIVE_GRADIENT for step in network.plan().steps)


@lru_cache(maxsize=512)
def _input_vjp(spec: LayerSpec, examples: int) -> tn.TensorNetwork:
    layer = replace_batch(spec, examples)
    return tn.input_vjp_of_positions(layer, tn.whole_class(layer, "output"))
