"""Refusing to differentiate an estimate a second time."""

from typing import Any

import torch
from torch import Tensor


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.operation = operation
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{ctx.operation}: double backward through estimated VJPs is not defined; "
            "use exact estimators (keep=1) or handle.remove() for second derivatives"
        )


def not_differentiable(operation: str, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients that raise when someone differentiates through them, for ``backward(create_graph=True)``.

    An estimate's dependence on what it was computed from is not the exact gradient's, so a second derivative taken
    through it would be a wrong number without a warning.
    """
    if not torch.is_grad_enabled():
        return grads
    present = [grad.detach().requires_grad_() for grad in grads if grad is not None]
    guarded = iter(_Refuse.apply(operation, *present) if present else ())
    return tuple(None if grad is None else next(guarded) for grad in grads)
