"""Losses within a model: cross-entropy holds rounded probabilities, where PyTorch holds the logarithms of all classes.

A language model's loss is over its whole vocabulary, which makes this its largest tensor. Absolute errors need signs
alone; other losses are in :mod:`.rules`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .lean_call import Call, is_activation
from .packed import call_with, constant
from .slope_needs import hold_derivatives


def nll_loss(call: Call, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``nll_loss``, whose gradient is minus the weights at the targets, whatever the input was."""
    return call_with(call, [input], constant) if is_activation(input) else NotImplemented


def cross_entropy(
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
    """``cross_entropy``: with class numbers, the two steps that PyTorch takes; else its derivatives are held."""
    if not is_activation(input) or input.dim() < 2:
        return NotImplemented
    if target.is_floating_point() or label_smoothing != 0 or size_average is not None or reduce is not None:
        return hold_derivatives(call, rows=1, poles=False)
    if torch.is_autocast_enabled(input.device.type):
        input = input.to(torch.promote_types(input.dtype, torch.float32))
    with call.context.inside():
        logarithms = F.log_softmax(input, 1)
        return F.nll_loss(logarithms, target, weight, ignore_index=ignore_index, reduction=reduction)


def l1_loss(
    call: Call,
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    """``l1_loss`` in PyTorch's steps, of which the second needs signs alone."""
    old = size_average is not None or reduce is not None
    if old or weight is not None or input.shape != target.shape or reduction not in ("mean", "sum", "none"):
        return NotImplemented
    with call.context.inside():
        each = (input - target).abs()
        return each if reduction == "none" else getattr(each, reduction)()


def divergence(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``kl_div`` reduces all, if the target has a gradient; else that of the input needs the target alone."""
    return None if target.requires_grad else NotImplemented
