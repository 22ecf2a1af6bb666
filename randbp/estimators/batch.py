"""Whole examples of the batch drawn without replacement."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..tn import LayerSpec
from .base import Estimator, kept
from .description import Description
from .draw import Draw
from .planned import planned_weight_vjp


@dataclass(frozen=True)
class Batch(Estimator):
    """Keep ``⌊p·N⌋`` examples, drawn without replacement, with weight ``N/|S|``; serves the weight VJP.

    ``V_W ≈ N/|S| Σ_{n∈S} X_n Π V_Y,n`` has the variance of a smaller mini-batch in this layer. The batch is not
    summed in the input VJP, where dropping an example would cut it off from every layer below: that is refused.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        bernoulli: If true, each example is kept on its own with probability ``p`` and weight ``1/p``; memory is then
            random, and a draw may keep nothing.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``.

    Example:
        >>> Batch(keep=0.5).check_serves("input_vjp")
        Traceback (most recent call last):
        ValueError: input_vjp=Batch(keep=0.5, bernoulli=False): Batch serves only weight_vjp
    """

    bernoulli: bool = False
    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp"})

    @property
    def fixed_size(self) -> bool:
        """Unless draws are Bernoulli."""
        return not self.bernoulli

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The kept examples ``[S, C, *I]``."""
        return (input.index_select(0, self._examples(input, draw)),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact weight VJP of the kept examples, scaled."""
        examples = self._examples(output_grad, draw)
        if not len(examples):
            return output_grad.new_zeros(spec.weight_shape)
        result = planned_weight_vjp(held[0], output_grad.index_select(0, examples), spec)
        return result.mul_(1 / self.keep if self.bernoulli else spec.batch_size / len(examples))

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Refused: see the class."""
        raise ValueError(f"input_vjp={self!r}: Batch serves only weight_vjp")

    def _examples(self, tensor: Tensor, draw: Draw) -> Tensor:
        batch = tensor.shape[0]
        if self.bernoulli:  # drawn on the host, so that the random size is known there
            chosen = (torch.rand(batch, generator=draw.generator()) < self.keep).nonzero().flatten()
            return chosen.to(tensor.device, non_blocking=True)
        return draw.permutation(batch, tensor.device)[: kept(batch, self.keep)]

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        share = self.keep if self.bernoulli else kept(spec.batch_size, self.keep) / spec.batch_size
        example = spec.in_channels * prod(spec.input_size) * dtype.itemsize
        variance = "(1/p - 1) Σ_n ‖g_n‖²" if self.bernoulli else "(1/p - 1) N/(N-1) Σ_n ‖g_n - ḡ‖²"
        held, work = share * spec.batch_size * example, share * spec.multiply_adds
        return Description(round(held), round(work), None, None, variance)
