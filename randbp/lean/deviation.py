"""Variances, standard deviations and norms, in a few bits per entry of the input.

With ``n`` entries and ``σ²`` their variance, the input gradient of the variance is ``2 v (x - mean(x)) / (n - 1)``,
linear in ``x``, which is held. That of the standard deviation is ``v (x - mean(x)) / ((n - 1) σ)`` and that of the norm
``s`` is ``v x / s``: these would be linear in ``x``, too, but where ``σ`` or ``s`` is small they would make much of a
small error in ``x``. So the derivatives themselves are held, which are at most 1.
"""

from math import inf
from typing import Any

import torch
from torch import Tensor

from .comparisons import signs
from .lean_call import Call, is_activation
from .packed import Substitute, call_with, rounded
from .slope_needs import hold_derivatives


def _with_rounded(call: Call, *inputs: Tensor) -> Any:
    sources = [x for x in inputs if is_activation(x)]
    if not sources:
        return NotImplemented
    context, known = call.context, dict[Any, Substitute]()
    return call_with(call, sources, lambda tensor, outer: rounded(tensor, context, outer, known))


def variance(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Hold the rounded input."""
    return _with_rounded(call, input)


def dims_of_deviation(input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The dimensions that ``std`` reduces; ``x.std(False)`` is without Bessel's correction."""
    return () if dim is None or isinstance(dim, bool) else dim


def vector_norm(
    call: Call, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """Hold signs for the 1-norm, else the derivatives."""
    if ord == 1 and dtype is None:
        return signs(call, x)
    if not call.rounds or ord in (0, inf, -inf):
        return NotImplemented
    return hold_derivatives(call, rows=() if dim is None else dim, poles=ord < 1)


def dims_of_norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The dimensions that ``linalg.norm`` reduces if it is a norm of vectors."""
    of_vectors = isinstance(dim, int) or (isinstance(dim, tuple | list) and len(dim) == 1)
    if not (ord is None or (ord == 2 and (of_vectors or (dim is None and A.dim() == 1)))):
        return NotImplemented
    return () if dim is None else dim


def distances(call: Call, x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Any:
    """Of ``d_ij = ‖x_i - y_j‖`` the gradients ``Σ_j v_ij (x_i - y_j) / d_ij`` are linear in both, as ``d`` is held."""
    return _with_rounded(call, x1, x2) if p == 2 else NotImplemented


def pairwise_distance(
    call: Call, x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    """The norm of differences, in PyTorch's steps."""
    with call.context.inside():
        return torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)
