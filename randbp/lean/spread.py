"""Variances, standard deviations and Euclidean norms: the input in a few bits.

With ``n`` entries, ``σ²`` their variance and ``s`` their norm, the input gradients are ``2 v (x - mean(x)) / (n - 1)``,
``v (x - mean(x)) / ((n - 1) σ)`` and ``v x / s``: linear in ``x``. The result is small, and held as it is.
"""

from typing import Any

import torch
from torch import Tensor

from ..autograd.hooks import Hooks
from .packed import Packed, packing, rounded
from .rules import Call, is_activation, lean_version_of


def _with_rounded_input(call: Call, x: Tensor) -> Any:
    if not is_activation(x):
        return NotImplemented
    source, session = id(x.untyped_storage()), call.session

    def pack(tensor: Tensor, outer: Hooks | None) -> Packed | None:
        return rounded(tensor, session, outer, None) if id(tensor.untyped_storage()) == source else None

    with packing(pack):
        return call.run()


@lean_version_of(
    [
        *(torch.var, torch.std, torch.var_mean, torch.std_mean, Tensor.var, Tensor.std),
    ],
    exact=False,
)
def _variance(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return NotImplemented if kwargs.get("out") is not None else _with_rounded_input(call, input)


@lean_version_of([torch.linalg.vector_norm], exact=False)
def _vector_norm(
    call: Call, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Any:
    return NotImplemented if out is not None or ord != 2 else _with_rounded_input(call, x)


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
    return _with_rounded_input(call, A)
