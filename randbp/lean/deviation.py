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
from torch.nn import functional as F

from .._torch.hooks import Hooks
from .comparisons import hold_signs
from .derived import hold_derivatives
from .packed import Packed, Roundings, packing, rounded
from .rules import Call, is_activation, lean_version_of


def _with_rounded_input(call: Call, *inputs: Tensor) -> Any:
    sources = {id(x.untyped_storage()) for x in inputs if is_activation(x)}
    if not sources:
        return NotImplemented
    session = call.session
    known: Roundings = {}

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        return rounded(tensor, session, outer, known) if id(tensor.untyped_storage()) in sources else None

    with packing(pack):
        return call.run()


@lean_version_of(
    [
        *(torch.var, torch.var_mean, torch.std_mean, Tensor.var),
    ],
    exact=False,
)
def _variance(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if kwargs.get("out") is not None else _with_rounded_input(call, input)


@lean_version_of([torch.std, Tensor.std], exact=False)
def _deviation(call: Call, input: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    unbiased_only = isinstance(dim, bool)  # ``x.std(False)``
    return hold_derivatives(call, rows=() if dim is None or unbiased_only else dim, poles=False)


@lean_version_of([torch.linalg.vector_norm], exact=True)
def _vector_norm(
    call: Call, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Any:
    if out is not None:
        return NotImplemented
    if ord == 1 and dtype is None:
        return hold_signs(call, x)
    if not call.rounds:
        return NotImplemented
    if ord in (0, inf, -inf):
        return NotImplemented
    return hold_derivatives(call, rows=() if dim is None else dim, poles=ord < 1)


@lean_version_of([torch.linalg.norm], exact=False)
def _linalg_norm(
    call: Call,
    A: Tensor,
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    out: Any = None,
) -> Any:
    of_vectors = isinstance(dim, int) or (isinstance(dim, tuple | list) and len(dim) == 1)
    if out is not None or not (ord is None or (ord == 2 and (of_vectors or (dim is None and A.dim() == 1)))):
        return NotImplemented
    return hold_derivatives(call, rows=() if dim is None else dim, poles=False)


@lean_version_of([torch.cdist], exact=False)
def _cdist(call: Call, x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Any:
    """Of ``d_ij = ‖x_i - y_j‖`` the gradients ``Σ_j v_ij (x_i - y_j) / d_ij`` are linear in both, as ``d`` is held."""
    return _with_rounded_input(call, x1, x2) if p == 2 else NotImplemented


@lean_version_of([F.pairwise_distance], exact=False)
def _pairwise_distance(
    call: Call, x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    with call.session.inside():
        return torch.linalg.vector_norm(x1 - x2 + eps, p, -1, keepdim)
