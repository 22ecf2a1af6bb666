"""Products with a few examples of an output gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers.layer_specs import LayerSpec, replace_batch
from ..tn.execute.layer_vjps import native_input_vjp, native_weight_vjp


@dataclass(frozen=True)
class DrawnExamples:
    """Examples of an output gradient ``[N, D, *O]``, and the VJPs of these."""

    grad: Tensor  # the whole output gradient
    numbers: Tensor  # int64 [S]
    weights: Tensor  # [S]: one over the probability of being drawn, or zero

    def weight_vjp(self, examples: Callable[[slice], Tensor], spec: LayerSpec) -> Tensor:
        """``Σ_s w_s V_W,s``; ``examples`` gives a slice of the input, ``[n, C, *I]``."""
        if self.grad.device.type == "cpu":
            inputs = torch.cat([examples(slice(number, number + 1)) for number in self.numbers.tolist()])
        else:  # which examples were drawn is not known without waiting for the device
            inputs = examples(slice(0, spec.batch_size)).index_select(0, self.numbers)
        return native_weight_vjp(inputs, self._grads(), replace_batch(spec, len(inputs)))

    def input_vjp(self, weight: Tensor, spec: LayerSpec) -> Tensor:
        """``w_s V_X,s`` for the drawn examples, zeros for the others, ``[N, C, *I]``."""
        grads = self._grads()
        made = native_input_vjp(grads, weight, replace_batch(spec, len(grads)))
        return made.new_zeros(spec.batch_size, *made.shape[1:]).index_add_(0, self.numbers, made)

    def _grads(self) -> Tensor:
        """What was drawn, weighted."""
        weights = self.weights.to(self.grad.dtype).view(-1, *[1] * (self.grad.dim() - 1))
        return self.grad.index_select(0, self.numbers) * weights
