"""Elementwise functions: the derivative in a few bits; that of smooth activations on a fixed grid."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..codecs import Grid, Stream
from .memory_order import flatten, memory_order, pieces, unexpanded, unflatten
from .rules import Call, is_plain, lean_version_of
from .slopes import Slopes

_Known = tuple[str, list[float]]
"""An activation whose derivative is computed and rounded in one pass, and its parameters."""


class _Smooth(torch.autograd.Function):
    """Holds ``φ'(x)`` in a few bits per entry; the input gradient is linear in it, hence unbiased."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        edge: Tensor,
        function: Callable[[Tensor], Tensor],
        seed: int,
        kind: Slopes,
        inplace: bool,
        known: _Known | None,
    ) -> Tensor:
        order, noise = memory_order(x), Stream(seed, x.device)
        flat = flatten(x, order)
        if known is not None and isinstance(kind, Grid):
            ctx.parts = [slice(0, len(flat))]
            codes = [kind.encode_slopes(flat, *known, noise)]
        else:
            ctx.parts = pieces(x.numel(), x.device, 256)
            codes = [kind.encode(_slope(function, flat[part], inplace), noise) for part in ctx.parts]
        # Once more, of all at once: the last bits of PyTorch's functions depend on where in memory an entry lies.
        y = function(x)
        if inplace:
            ctx.mark_dirty(x)
        # The seed travels with the codes: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.cat(codes), edge, torch.tensor(seed) if kind.dithered else None)
        ctx.kind, ctx.order, ctx.shape, ctx.dtype = kind, order, x.shape, x.dtype
        return x if inplace else y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        codes, edge, seed = ctx.saved_tensors
        noise = None if seed is None else Stream(int(seed), codes.device)
        with torch.no_grad():
            flat = flatten(output_grad, ctx.order)
            result = _times(ctx.kind, flat, codes, ctx.parts, noise).to(ctx.dtype)
        grads = refuse_second_derivatives(
            "lean activation", (unflatten(result, ctx.shape, ctx.order),), (edge, output_grad)
        )
        return (*grads, *[None] * 6)


def _times(kind: Slopes, flat: Tensor, codes: Tensor, parts: list[slice], noise: Stream | None) -> Tensor:
    """Flat gradients times what is held of slopes, part by part."""
    if len(parts) == 1:
        return kind.times(flat, codes, noise)
    result, first = torch.empty_like(flat), 0
    for part in parts:
        size = kind.nbytes(part.stop - part.start)
        result[part] = kind.times(flat[part], codes[first : first + size], noise)
        first += size
    return result


def _slope(function: Callable[[Tensor], Tensor], x: Tensor, inplace: bool) -> Tensor:
    """``φ'(x)``, by PyTorch."""
    # Hooks of whoever called this (a checkpoint, say) are for what is held, and nothing of this small graph is.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
    with torch.enable_grad(), plain:
        x = x.detach().requires_grad_()
        y = function(x.clone() if inplace else x)
        (slope,) = torch.autograd.grad(y, x, torch.ones((), dtype=y.dtype, device=y.device).expand_as(y))
    return slope


def _apply(call: Call, x: Tensor, low: float, high: float, inplace: bool = False, known: _Known | None = None) -> Any:
    if not is_plain(x):
        return NotImplemented
    return hold_slope(call, x, call.run_on, Grid.over(low, high, call.session.bits), inplace, known)


def hold_slope(
    call: Call,
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    kind: Slopes,
    inplace: bool = False,
    known: _Known | None = None,
) -> Any:
    """``φ(x)`` of an elementwise function, of which only the rounded derivative is held.

    Args:
        call: For its seed.
        x: A tensor for which ``is_plain``.
        function: PyTorch's ``φ``, called with all entries and with some of them.
        kind: How the derivative is held.
        inplace: Whether ``φ`` overwrites its argument.
        known: The function's name and parameters for :func:`randbp.kernels.slope_to_grid`, if it is one of those.
    """
    if inplace and unexpanded(x).shape != x.shape:
        return NotImplemented  # for PyTorch to refuse
    fused = known if x.dtype != torch.float64 else None  # that is computed in single precision
    y: Tensor = _Smooth.apply(x, graph_edge(x), function, call.session.seed(), kind, inplace, fused)
    return y


_SELU = (1.7580993408473766, 1.0507009873554805)
"""SELU's scale times its alpha, and its scale."""

SELU_SLOPES = (0.0, 1.7581)
"""The range of SELU's derivative: up to its scale times its alpha."""


def _of(function: str, factor: float = 1.0, second: float = 0.0, third: float = 0.0) -> _Known:
    """An activation of which :func:`randbp.kernels.slope_to_grid` computes the derivative."""
    return function, [factor, second, third]


@lean_version_of([F.gelu], exact=False)
def _gelu(call: Call, input: Tensor, approximate: str = "none") -> Any:
    known = _of("gelu_tanh" if approximate == "tanh" else "gelu")
    return _apply(call, input, -0.13, 1.13, known=known)  # the extremes are at ±√2: 0.5 ± 0.6290 (with tanh 0.6291)


@lean_version_of([F.silu], exact=False)
def _silu(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, -0.1, 1.1, inplace, _of("silu"))  # -0.0998 and 1.0998


@lean_version_of([F.hardswish], exact=False)
def _hardswish(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, -0.5, 1.5, inplace, _of("hardswish"))


@lean_version_of([F.mish], exact=False)
def _mish(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, -0.12, 1.09, inplace, _of("mish"))  # -0.1132 and 1.0885


@lean_version_of([torch.tanh, Tensor.tanh, F.tanh], exact=False)
def _tanh(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 1.0, known=_of("tanh", 2.0))


@lean_version_of([torch.sigmoid, Tensor.sigmoid, F.sigmoid], exact=False)
def _sigmoid(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 0.25, known=_of("sigmoid"))


@lean_version_of([F.softplus], exact=False)
def _softplus(call: Call, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Any:
    return _apply(call, input, 0.0, 1.0, known=_of("softplus", beta, threshold))


@lean_version_of([F.elu], exact=False)
def _elu(call: Call, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Any:
    return (
        NotImplemented if alpha < 0 else _apply(call, input, 0.0, max(1.0, alpha), inplace, _of("elu", 1.0, alpha, 1.0))
    )


@lean_version_of([F.logsigmoid], exact=False)
def _logsigmoid(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 1.0, known=_of("softplus", -1.0, torch.inf))


@lean_version_of([F.selu], exact=False)
def _selu(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, *SELU_SLOPES, inplace, _of("elu", 1.0, *_SELU))


@lean_version_of([F.celu, torch.celu], exact=False)
def _celu(call: Call, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Any:
    return NotImplemented if alpha <= 0 else _apply(call, input, 0.0, 1.0, inplace, _of("elu", 1 / alpha, 1.0, 1.0))


@lean_version_of([F.softsign, F.tanhshrink], exact=False)
def _from_zero_to_one(call: Call, input: Tensor) -> Any:
    return _apply(call, input, 0.0, 1.0)
