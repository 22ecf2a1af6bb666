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

    exact = False  # it is not PyTorch's bit for bit

    def for_layer(self, vjp: Vjp, spec: LayerSpec, dtype: torch.dtype, device: torch.device) -> Estimator:
        """:class:`Exact` where the plan is PyTorch's own kernel, too."""
        native = isinstance(spec, LinearSpec) or _has_step(Kind.NATIVE_GRADIENT, spec, spec.batch_size, vjp)
        return Exact() if native else self

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_W = Σ_{n i o} X Π V_Y``."""
        return planned_weight_vjp(held[0], output_grad, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_X = Σ_{d o k} W Π V_Y``."""
        return planned_input_vjp(output_grad, weight, spec)


def planned_weight_vjp(input: Tensor, output_grad: Tensor, spec: LayerSpec) -> Tensor:
    """The full sum ``V_W = Σ_{n i o} X Π V_Y`` of operands whose number of examples need not be the spec's."""
    # Fused sums over pairs are as fast, or faster, if channels lie innermost in memory.
    if not _is_plain(spec, input) and (
        isinstance(spec, LinearSpec) or not _has_step(Kind.PAIR_SUMS, spec, len(input), "weight_vjp")
    ):
        return native_weight_vjp(input, output_grad, spec)
    return _network(spec, len(input), "weight_vjp").contract({"input": input, "output_grad": output_grad})


def planned_input_vjp(output_grad: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """The full sum ``V_X = Σ_{d o k} W Π V_Y`` of an output gradient whose number of examples need not be the spec's.

    PyTorch's own kernel takes less scratch memory when :func:`native_input_vjp` runs it.
    """
    examples = len(output_grad)
    if not _is_plain(spec, output_grad, weight) or _has_step(Kind.NATIVE_GRADIENT, spec, examples, "input_vjp"):
        return native_input_vjp(output_grad, weight, spec)
    return _network(spec, examples, "input_vjp").contract({"output_grad": output_grad, "weight": weight})


def _is_plain(spec: LayerSpec, *tensors: Tensor) -> bool:
    """Whether the layer is a convolution of tensors in PyTorch's default memory format."""
    return not isinstance(spec, LinearSpec) and all(memory_format_of(t) == torch.contiguous_format for t in tensors)


@lru_cache(maxsize=1024)
def _network(spec: LayerSpec, examples: int, vjp: Vjp) -> tn.TensorNetwork:
    layer = replace_batch(spec, examples)
    if vjp == "input_vjp":
        return tn.input_vjp_of_positions(layer, tn.whole_class(layer, "output"))
    return tn.weight_vjp_of_positions(layer, tn.whole_class(layer, "input"))


@lru_cache(maxsize=1024)
def _has_step(kind: Kind, spec: LayerSpec, examples: int, vjp: Vjp) -> bool:
    return any(step.kind is kind for step in _network(spec, examples, vjp).plan().steps)
