"""The exact VJPs, in the form of an estimator."""

from dataclasses import dataclass, field

from torch import Tensor

from ..draws.draw import Draw
from ..tn import LayerSpec
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from .base import Estimator


@dataclass(frozen=True)
class Exact(Estimator):
    """PyTorch's own VJP, bit for bit. It holds the whole input for a weight VJP.

    Example:
        >>> Exact().exact
        True
    """

    keep: float = field(default=1.0, init=False, repr=False)

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The input itself."""
        return (input,)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_W = Σ_{n i o} X Π V_Y``."""
        return native_weight_vjp(held[0], output_grad, spec)

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """``V_X = Σ_{d o k} W Π V_Y``."""
        return native_input_vjp(output_grad, weight, spec)
