"""Errors for transforms that estimates do not support: ``torch.func``, forward mode and vectorised Jacobians."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from .._torch.state import has_storage

Backward = Callable[..., tuple[Tensor | None, ...]]


def not_transformed() -> RuntimeError:
    """Make the error that says how to avoid the transform."""
    return RuntimeError(
        "randbp: torch.func, forward mode and vectorised Jacobians do not pass estimated VJPs or lean mode's rounding; "
        "use exact estimators (keep=1) without lean, eval() mode or handle.remove() for them"
    )


def explain(error: RuntimeError, *tensors: Tensor | None) -> None:
    """Raise the error of :func:`not_transformed` from another one if a tensor is batched or carries a tangent."""
    for tensor in tensors:
        if tensor is not None and (not has_storage(tensor) or forward_ad.unpack_dual(tensor).tangent is not None):
            raise not_transformed() from error


def refuses_vectorised(backward: Backward) -> Backward:
    """Decorate a backward pass so that its failure under a vectorised Jacobian explains itself.

    Those that PyTorch can vectorise pass: nothing is asked before something fails.
    """

    @wraps(backward)
    def guarded(ctx: Any, *output_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        try:
            return backward(ctx, *output_grads)
        except RuntimeError as error:
            explain(error, *output_grads)
            raise

    return guarded
