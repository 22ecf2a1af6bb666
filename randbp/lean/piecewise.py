"""Activations with a kink: one bit per entry says which of two slopes the gradient takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autograd.once import connected, edge_of
from ..modes import in_memory
from .comparisons import clamp_between
from .layout import flatten, memory_order, unflatten
from .masks import pack_where, unpacked
from .recipes import recipe_of, remember
from .rules import Call, is_plain, lean_version_of

aten = torch.ops.aten


class _Piecewise(torch.autograd.Function):
    """Holds one bit per entry; the slopes inside and outside are ``(a, None)``, where none is 0, or ``(1, b)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        edge: Tensor | None,
        call: Call,
        inside: Callable[[Tensor], Tensor],
        slopes: tuple,
        inplace: bool,
    ) -> Tensor:
        order = memory_order(x)
        bits = pack_where(inside, flatten(x, order))  # before the function, which may overwrite x
        y: Tensor = call.run()
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(bits, edge)
        ctx.shape, ctx.order, ctx.slopes = x.shape, order, slopes
        return y

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = output_grads
        bits, edge = ctx.saved_tensors
        flat = flatten(grad, ctx.order)
        if torch.is_grad_enabled() or not in_memory(grad):
            result = torch.cat([_scaled(flat[part], kept, ctx.slopes) for part, kept in unpacked(bits, len(flat))])
        else:  # a copy that came of another memory order is nobody else's
            result = torch.empty_like(flat) if flat.data_ptr() == grad.data_ptr() else flat
            for part, kept in unpacked(bits, len(flat)):
                result[part] = _scaled(flat[part], kept, ctx.slopes)
        return connected(unflatten(result, ctx.shape, ctx.order), edge), *[None] * 5


def _scaled(grad: Tensor, inside: Tensor, slopes: tuple[float, float | None]) -> Tensor:
    """Times the one slope or the other, by PyTorch's vectorised kernels: ``torch.where`` is many times slower."""
    within, outside = slopes
    chosen = inside.to(grad.dtype)
    if outside is not None:  # also 0, times which a gradient keeps its sign and need not be finite
        return aten.leaky_relu_backward(grad, chosen, outside, False)
    return aten.threshold_backward(grad if within == 1 else grad * within, chosen, 0)


def _apply(
    call: Call,
    x: Tensor,
    inside: Callable[[Tensor], Tensor],
    slopes: tuple[float, float | None] = (1.0, None),
    inplace: bool = False,
    linked: bool = True,
) -> Any:
    """The function, holding bits.

    Args:
        call: Of the function.
        x: Its argument.
        inside: The test that an entry passes where the first slope holds.
        slopes: The one inside and the one outside, ``None`` for a gradient that is 0 there whatever comes.
        inplace: Whether the function overwrites ``x``.
        linked: Whether PyTorch's gradient depends on ``x``, if only with derivative 0.
    """
    if not is_plain(x):
        return NotImplemented
    recipe = recipe_of(x)
    y = _Piecewise.apply(x, edge_of(x) if linked else None, call, inside, slopes, inplace)
    if recipe is not None:
        remember(y, recipe.then(call.without_input()))
    return y


# Each comparison is PyTorch's own, so that NaN and the kinks themselves fall on the same side.


@lean_version_of([F.relu, torch.relu, Tensor.relu], exact=True)
def _relu(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _apply(call, input, lambda x: (x <= 0).logical_not_(), inplace=inplace)


@lean_version_of([torch.relu_, Tensor.relu_, F.relu_], exact=True)
def _relu_(call: Call, input: Tensor) -> Any:
    return _relu(call, input, inplace=True)


@lean_version_of([F.hardtanh], exact=True)
def _hardtanh(call: Call, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    # (For NaN PyTorch's vectorised and scalar kernels disagree; this is the vectorised one's zero.)
    return _apply(call, input, lambda x: (x > min_val).logical_and_(x < max_val), inplace=inplace)


@lean_version_of([F.relu6], exact=True)
def _relu6(call: Call, input: Tensor, inplace: bool = False) -> Any:
    return _hardtanh(call, input, 0.0, 6.0, inplace)


@lean_version_of([F.leaky_relu], exact=True)
def _leaky_relu(call: Call, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    if inplace and negative_slope < 0:  # PyTorch refuses to differentiate that
        return NotImplemented
    return _apply(call, input, lambda x: x > 0, (1.0, negative_slope), inplace)


@lean_version_of([F.threshold, torch.threshold], exact=True)
def _threshold(call: Call, input: Tensor, threshold: float, value: float, inplace: bool = False) -> Any:
    return _apply(call, input, lambda x: (x <= threshold).logical_not_(), inplace=inplace)


@lean_version_of([F.hardsigmoid], exact=True)
def _hardsigmoid(call: Call, input: Tensor, inplace: bool = False) -> Any:
    sixth = float(torch.tensor(1 / 6))  # PyTorch's factor is single precision's for all dtypes
    return _apply(call, input, lambda x: (x > -3).logical_and_(x < 3), (sixth, None), inplace)


@lean_version_of([torch.clamp, Tensor.clamp, Tensor.clip, torch.clip], exact=True)
def _clamp(
    call: Call, input: Tensor, min: Any = None, max: Any = None, *, out: Any = None, inplace: bool = False
) -> Any:
    if out is not None or min is max is None:
        return NotImplemented
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return NotImplemented if inplace else clamp_between(call, input, min, max)

    def inside(x: Tensor) -> Tensor:
        if min is None:
            return x <= max
        return x >= min if max is None else (x >= min).logical_and_(x <= max)

    return _apply(call, input, inside, inplace=inplace, linked=False)


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
