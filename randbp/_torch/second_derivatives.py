"""Second derivatives: refused through an estimate, and zero where a function is linear in pieces."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operation: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.operation = operation
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{ctx.operation}: double backward through estimated VJPs is not defined; "
            "use exact estimators (keep=1) or handle.remove() for second derivatives"
        )


class _Connected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, edge: Tensor) -> Tensor:
        ctx.edge = edge.new_empty(edge.shape)
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], ctx.edge


def graph_edge(tensor: Tensor) -> Tensor | None:
    """A tensor without entries at the same place of the graph: it keeps the edge alive, but not the memory."""
    if not tensor.requires_grad:
        return None
    return (tensor if tensor.dim() else tensor.view(1))[:0].clone()


def connected(grad: Tensor, edge: Tensor | None) -> Tensor:
    """A gradient that depends on a function's input with derivative 0, as PyTorch's of piecewise linear functions do.

    ``backward(create_graph=True)`` then gives one whose own gradient with respect to that input is zero, where a
    gradient that has nothing to do with the input would be an error. ``edge`` is the input's :func:`graph_edge`.
    """
    return _Connected.apply(grad, edge) if edge is not None and torch.is_grad_enabled() else grad


def refuse_second_derivatives(
    operation: str, grads: tuple[Tensor | None, ...], causes: Iterable[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients that raise when someone differentiates through them, for ``backward(create_graph=True)``.

    An estimate's dependence on what it was computed from is not the exact gradient's, so a second derivative taken
    through it would be a wrong number without a warning. Causes are tensors that the exact gradients depend on, or
    their :func:`graph_edge`.
    """
    connected = [cause for cause in causes if cause is not None and cause.requires_grad]
    if not torch.is_grad_enabled() or not connected:
        return grads
    present = [grad for grad in grads if grad is not None]
    guarded = iter(_Refuse.apply(operation, len(present), *present, *connected))
    return tuple(None if grad is None else next(guarded) for grad in grads)
