"""Activations with a kink: one bit per entry says which of two slopes the gradient takes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.second_derivatives import connected, graph_edge
from .._torch.state import has_storage
from ..codecs import Mask
from ..kernels import relu
from ..kernels.masked import chosen
from .comparisons import clamp_between
from .memory_order import flatten, memory_order, unflatten
from .recompute import recipe_of, remember
from .rules import Call, is_plain, lean_version_of


@dataclass(frozen=True)
class _Kink:
    """Where a function has which slope.

    Attributes:
        test: The comparison (:func:`randbp.kernels.inside`) that an entry passes where the first slope holds.
        low: Its lower bound.
        high: Its upper bound.
        slope: The slope there.
        other: The slope elsewhere; ``None`` for a gradient that is 0 there whatever comes.
    """

    test: str
    low: float = 0.0
    high: float = torch.inf
    slope: float = 1.0
    other: float | None = None


_RELU = _Kink("not_under")


class _Piecewise(torch.autograd.Function):
    """Holds one bit per entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge: Tensor | None, call: Call, kink: _Kink, inplace: bool) -> Tensor:
        order = memory_order(x)
        flat = flatten(x, order)
        if kink is _RELU and not inplace:
            values, bits = relu(flat)
            y: Tensor = unflatten(values, x.shape, order)
        else:
            bits = Mask().where(flat, kink.test, kink.low, kink.high)  # the function may overwrite x
            y = call.run()
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(bits, edge)
        ctx.shape, ctx.order, ctx.kink = x.shape, order, kink
        return y

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = output_grads
        bits, edge = ctx.saved_tensors
        flat, kink, mask = flatten(grad, ctx.order), ctx.kink, Mask()
        if torch.is_grad_enabled() or not has_storage(grad):
            result = chosen(flat, mask.decode(bits, len(flat)), kink.slope, kink.other)
        else:
            result = mask.apply(bits, flat, kink.slope, kink.other)
        return connected(unflatten(result, ctx.shape, ctx.order), edge), *[None] * 4


def _apply(call: Call, x: Tensor, kink: _Kink, inplace: bool = False, linked: bool = True) -> Any:
    """The function, holding bits.

    Args:
        call: Of the function.
        x: Its argument.
        kink: Its slopes.
        inplace: Whether the function overwrites ``x``.
        linked: Whether PyTorch's gradient depends on ``x``, if only with derivative 0.
    """
    if not is_plain(x):
        return NotImplemented
    recipe = recipe_of(x)
    y = _Piecewise.apply(x, graph_edge(x) if linked else None, call, kink, inplace)
    if recipe is not None:
        step = call.without_input()
        remember(y, recipe.then_relu(step) if kink is _RELU else recipe.then(step))
    return y


# Each comparison is PyTorch's own, so that NaN and the kinks themselves fall on the same side.


@lean_version_of([F.relu, torch.relu, Tensor.relu], exact=True)
def _relu(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, _RELU, inplace)


@lean_version_of([torch.relu_, Tensor.relu_, F.relu_], exact=True)
def _relu_(call: Call, input: Tensor) -> Any:
    return _relu(call, input, inplace=True)


@lean_version_of([F.hardtanh], exact=True)
def _hardtanh(call: Call, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    # (For NaN PyTorch's vectorised and scalar kernels disagree; this is the vectorised one's zero.)
    return _apply(call, input, _Kink("between", min_val, max_val), inplace)


@lean_version_of([F.relu6], exact=True)
def _relu6(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _hardtanh(call, input, 0.0, 6.0, inplace)


@lean_version_of([F.leaky_relu], exact=True)
def _leaky_relu(call: Call, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    if inplace and negative_slope < 0:  # PyTorch refuses to differentiate that
        return NotImplemented
    return _apply(call, input, _Kink("over", other=negative_slope), inplace)


@lean_version_of([F.threshold, torch.threshold], exact=True)
def _threshold(call: Call, input: Tensor, threshold: float, value: float, inplace: bool = False) -> Any:
    return _apply(call, input, _Kink("not_under", threshold), inplace)


@lean_version_of([F.hardsigmoid], exact=True)
def _hardsigmoid(call: Call, input: Tensor, inplace: bool = False) -> Any:
    sixth = float(torch.tensor(1 / 6))  # PyTorch's factor is single precision's for all dtypes
    return _apply(call, input, _Kink("between", -3.0, 3.0, sixth), inplace)


@lean_version_of([torch.clamp, Tensor.clamp, Tensor.clip, torch.clip], exact=True)
def _clamp(
    call: Call, input: Tensor, min: Any = None, max: Any = None, *, out: Any = None, inplace: bool = False
) -> Any:
    if out is not None or min is max is None:
        return NotImplemented
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return NotImplemented if inplace else clamp_between(call, input, min, max)

    low, high = -torch.inf if min is None else min, torch.inf if max is None else max
    return _apply(call, input, _Kink("within", low, high), inplace, linked=False)


@lean_version_of([torch.clamp_, Tensor.clamp_, torch.clip_, Tensor.clip_], exact=True)
def _clamp_(call: Call, input: Tensor, min: Any = None, max: Any = None) -> Any:
    return _clamp(call, input, min, max, inplace=True)


@lean_version_of([torch.clamp_min, Tensor.clamp_min], exact=True)
def _clamp_min(call: Call, input: Tensor, min: Any) -> Any:
    return _clamp(call, input, min)


@lean_version_of([torch.clamp_max, Tensor.clamp_max], exact=True)
def _clamp_max(call: Call, input: Tensor, max: Any) -> Any:
    return _clamp(call, input, None, max)


@lean_version_of([torch.clamp_min_, Tensor.clamp_min_], exact=True)
def _clamp_min_(call: Call, input: Tensor, min: Any) -> Any:
    return _clamp(call, input, min, inplace=True)


@lean_version_of([torch.clamp_max_, Tensor.clamp_max_], exact=True)
def _clamp_max_(call: Call, input: Tensor, max: Any) -> Any:
    return _clamp(call, input, None, max, inplace=True)
