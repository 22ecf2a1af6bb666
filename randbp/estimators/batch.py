"""Whole examples of the batch drawn without replacement."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..tn import ConvSpec
from .base import Estimator, kept
from .draw import Draw
from .native import native_weight_vjp


@dataclass(frozen=True)
class Batch(Estimator):
    """Keep ``⌊p·N⌋`` examples, drawn without replacement, with weight ``N/|S|``; serves the weight VJP.

    ``V_W ≈ N/|S| Σ_{n∈S} X_n Π V_Y,n`` has the variance of a smaller mini-batch in this layer. The batch is not
    summed in the input VJP, where dropping an example would cut it off from every layer below: that is refused.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Batch(keep=0.5).check_serves("input_vjp")
        Traceback (most recent call last):
        ValueError: input_vjp=Batch(keep=0.5): Batch serves only weight_vjp
    """

    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp"})

    def sketch(self, input: Tensor, spec: ConvSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The kept examples ``[S, C, *I]``."""
        return (input.index_select(0, self._examples(input, draw)),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """The native weight VJP of the kept examples, scaled."""
        examples = self._examples(output_grad, draw)
        result = native_weight_vjp(held[0], output_grad.index_select(0, examples), spec)
        return result.mul_(spec.batch_size / len(examples))

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: ConvSpec, draw: Draw) -> Tensor:
        """Refused: see the class."""
        raise ValueError(f"input_vjp={self!r}: Batch serves only weight_vjp")

    def _examples(self, tensor: Tensor, draw: Draw) -> Tensor:
        batch = tensor.shape[0]
        return draw.permutation(batch, tensor.device)[: kept(batch, self.keep)]
