"""Cross-entropy within a model: rounded probabilities, where PyTorch holds the logarithms of all classes.

A language model's loss is over its whole vocabulary, which makes this its largest tensor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.hooks import Hooks
from ..tn.execute.native import placeholder
from .packed import Packed, packing
from .rules import Call, is_activation, lean_version_of


@dataclass(frozen=True)
class _Shape:
    """Stands for a tensor of which the kernel reads the shape alone."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def tensor(self) -> Tensor:
        """Memory that nobody reads; kernels make a gradient in the same order."""
        return placeholder(torch.empty(0, dtype=self.dtype, device=self.device), self.shape)


@lean_version_of([F.nll_loss], exact=True)
def _nll_loss(call: Call, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The gradient is minus the weights at the targets, whatever the input was."""
    if not is_activation(input):
        return NotImplemented
    source = id(input.untyped_storage())

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        return _Shape(tensor.shape, tensor.dtype, tensor.device) if id(tensor.untyped_storage()) == source else None

    with packing(pack):
        return call.run()


@lean_version_of([F.cross_entropy], exact=False)
def _cross_entropy(
    call: Call,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Of classes by their numbers, in the two steps that PyTorch takes, too."""
    old = size_average is not None or reduce is not None
    if not is_activation(input) or target.is_floating_point() or label_smoothing != 0 or old or input.dim() < 2:
        return NotImplemented
    if torch.is_autocast_enabled(input.device.type):
        input = input.to(torch.promote_types(input.dtype, torch.float32))
    with call.session.inside():
        logarithms = F.log_softmax(input, 1)
        return F.nll_loss(logarithms, target, weight, ignore_index=ignore_index, reduction=reduction)
