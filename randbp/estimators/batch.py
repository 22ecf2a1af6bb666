"""Whole examples of the batch, drawn without replacement; the mean example may be kept exactly."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..draws.draw import Draw
from ..tn import LayerSpec
from .base import Estimator, kept
from .description import Description
from .planned import planned_weight_vjp, shared_weight_vjp


@dataclass(frozen=True)
class Batch(Estimator):
    """Keep ``⌊p·N⌋`` examples, drawn without replacement, with weight ``N/|S|``; serves the weight VJP.

    ``V_W ≈ N/|S| Σ_{n∈S} X_n Π V_Y,n`` has the variance of a smaller mini-batch in this layer. The batch is not
    summed in the input VJP, where dropping an example would cut it off from every layer below: that is refused.

    With ``center=True`` the mean example ``m`` counts among those kept, only deviations from it are sampled, and

    ``V_W ≈ (m - r) Π Σ_n V_Y,n + N/|S| Σ_{n∈S} (X_n - m) Π V_Y,n``

    with ``r`` the mean of the kept deviations. These add up to zero over the batch, so ``r`` centres the other factor,
    too, and the variance is ``(1/p - 1) N/(N-1)`` times that of ``(X_n - m) Π (V_Y,n - mean)`` over examples. It costs
    a pass over the input and one over the output gradient. Where fewer than two deviations would be kept nothing is
    centred.

    Args:
        keep: Keep rate ``p`` in ``(0, 1]``.
        bernoulli: If true, each example is kept on its own with probability ``p`` and weight ``1/p``; memory is then
            random, and a draw may keep nothing.
        center: Whether to keep the mean example exactly; not with ``bernoulli``.

    Raises:
        ValueError: If ``keep`` is not a number in ``(0, 1]``, or ``center`` and ``bernoulli`` are both true.

    Example:
        >>> Batch(keep=0.5).check_serves("input_vjp")
        Traceback (most recent call last):
        ValueError: input_vjp=Batch(keep=0.5, bernoulli=False, center=False): Batch serves only weight_vjp
    """

    bernoulli: bool = False
    center: bool = False
    serves: ClassVar[frozenset[str]] = frozenset({"weight_vjp"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.center and self.bernoulli:
            raise ValueError("Batch: center=True, expected False with bernoulli=True")

    @property
    def fixed_size(self) -> bool:
        """True unless draws are Bernoulli."""
        return not self.bernoulli

    @property
    def draws_examples(self) -> bool:
        """Always true."""
        return True

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The kept examples ``[S, C, *I]``; if centred, their deviations from the mean, and that ``[1, C, *I]``."""
        rows = input.index_select(0, self._examples(input, draw))
        if not self._centred(len(input)):
            return (rows,)
        mean = input.mean(0, keepdim=True)
        rows.sub_(mean)
        return rows, mean.sub_(rows.mean(0, keepdim=True))

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """The exact weight VJP of the kept examples, scaled, plus that of the mean example."""
        examples = self._examples(output_grad, draw)
        if not len(examples):
            return output_grad.new_zeros(spec.weight_shape)
        result = planned_weight_vjp(held[0], output_grad.index_select(0, examples), spec)
        result.mul_(1 / self.keep if self.bernoulli else spec.batch_size / len(examples))
        if len(held) > 1:
            result += shared_weight_vjp(held[1], output_grad, spec)
        return result

    def input_vjp(self, output_grad: Tensor, weight: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """Raise ``ValueError``: see the class."""
        raise ValueError(f"input_vjp={self!r}: Batch serves only weight_vjp")

    def _examples(self, tensor: Tensor, draw: Draw) -> Tensor:
        batch = tensor.shape[0]
        if self.bernoulli:  # drawn on the host, so that the random size is known there
            chosen = (torch.rand(batch, generator=draw.generator()) < self.keep).nonzero().flatten()
            return chosen.to(tensor.device, non_blocking=True)
        return draw.permutation(batch, tensor.device)[: kept(batch, self.keep) - self._centred(batch)]

    def _centred(self, batch: int) -> bool:
        return self.center and 2 < kept(batch, self.keep) < batch

    def _describe(self, spec: LayerSpec, dtype: torch.dtype) -> Description:
        count = spec.batch_size * self.keep if self.bernoulli else kept(spec.batch_size, self.keep)
        example = spec.in_channels * prod(spec.input_size) * dtype.itemsize
        variance = "(1/p - 1) Σ_n ‖g_n‖²" if self.bernoulli else "(1/p - 1) N/(N-1) Σ_n ‖g_n - ḡ‖²"
        if self._centred(spec.batch_size):
            variance += " with g_n the gradient of X_n - mean and V_n - mean"
        work = count * spec.multiply_adds / spec.batch_size
        return Description(round(count * example), round(work), None, None, variance)
