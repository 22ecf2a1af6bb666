"""Refusing to transform an estimate: ``torch.func``, forward mode and vectorised Jacobians have no rule for it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from ..modes import in_memory

Backward = Callable[..., tuple[Tensor | None, ...]]


def not_transformed() -> RuntimeError:
    """The error that names the ways out."""
    return RuntimeError(
        "randbp: torch.func, forward mode and vectorised Jacobians do not pass estimated VJPs or lean mode's rounding; "
        "use exact estimators (keep=1) without lean, eval() mode or handle.remove() for them"
    )


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor stands for a batch in a vectorised Jacobian, or has a tangent.

    Example:
        >>> import torch
        >>> found = []
        >>> _ = torch.vmap(lambda x: found.append(is_transformed(x)) or x)(torch.ones(2))
        >>> found, is_transformed(torch.ones(2))
        ([True], False)
    """
    return not in_memory(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


def refuses_vectorised(backward: Backward) -> Backward:
    """A backward pass whose failure under a vectorised Jacobian says what failed.

    Those that PyTorch can vectorise pass: nothing is asked before something fails.
    """

    @wraps(backward)
    def guarded(ctx: Any, *output_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        try:
            return backward(ctx, *output_grads)
        except RuntimeError as error:
            if not any(is_transformed(grad) for grad in output_grads if grad is not None):
                raise
            raise not_transformed() from error

    return guarded
