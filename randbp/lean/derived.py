"""Functions in which each input entry affects one output entry: derivatives by PyTorch, held in a few bits.

If ``x_i`` enters ``y_j`` alone, its gradient is ``v_j ∂y_j/∂x_i``: linear in the derivative, so any unbiased rounding
of that will do. It need not be written down: differentiating ``Σ_j y_j`` gives all at once, in the forward pass.
Of that kind are elementwise functions of tensors of one shape, reductions of rows, and every loss, whose mean or sum
is a single ``y``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import elementwise  # noqa: F401, whose versions for numbers these extend
from .memory_order import broadcast, reduced_shape
from .partials import apply_partials
from .rules import RULES, Call, Rule, is_activation, is_unadorned, lean_version_of


@dataclass(frozen=True)
class _Place:
    """An argument that requires a gradient."""

    key: int | str
    tensor: Tensor


def _places(call: Call) -> list[_Place] | None:
    """The arguments that require gradients, if rounding their derivatives is worthwhile."""
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    tensors = [(key, value) for key, value in given if isinstance(value, Tensor)]
    if call.kwargs.get("out") is not None or not any(is_activation(value) for _, value in tensors):
        return None
    if not all(is_unadorned(value) and not value.is_complex() for _, value in tensors):
        return None
    return [_Place(key, value) for key, value in tensors if value.requires_grad]


def _with_derivatives(
    call: Call, places: list[_Place], shape: torch.Size | None
) -> tuple[Tensor, list[tuple[_Place, Tensor]]]:
    """The function's value, and the derivatives of its sum with respect to its arguments.

    Arguments are expanded to a shape if there is one.
    """
    # Hooks of whoever called this (a checkpoint, say) are for what is held, and nothing of this small graph is.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
    with torch.enable_grad(), plain:
        leaves = [place.tensor.detach().expand(shape or place.tensor.shape).requires_grad_() for place in places]
        new = {place.key: leaf for place, leaf in zip(places, leaves, strict=True)}
        args = [new.get(key, value) for key, value in enumerate(call.args)]
        y = call.function(*args, **{key: new.get(key, value) for key, value in call.kwargs.items()})
        differentiable = isinstance(y, Tensor) and y.requires_grad
        slopes = torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True) if differentiable else ()
    known = zip(places, slopes, strict=False)
    return y.detach(), [(place, slope.detach()) for place, slope in known if slope is not None]


def hold_derivatives(call: Call, rows: Any = None, expand: bool = False, poles: bool = True) -> Any:
    """Compute the function's value, holding its rounded derivatives.

    Args:
        call: Of a function of tensors, each entry of which enters one entry of the result.
        rows: Dimensions that the function reduces, unless its result is a single number.
        expand: Whether it broadcasts its arguments.
        poles: Whether derivatives may be infinite.
    """
    places = _places(call)
    if not places:
        return NotImplemented
    shape = None
    if expand:
        given = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
        shape = broadcast(given)
        if shape is None or len({place.tensor.dtype for place in places}) > 1:
            return NotImplemented
    y, known = _with_derivatives(call, places, shape)
    if not known:
        return NotImplemented
    slopes = [slope for _, slope in known]
    if any(place.tensor.shape != shape for place in places) and expand:
        with torch.no_grad():
            y = call.run()  # PyTorch rounds otherwise where an expanded tensor takes another of its loops
    reduced = None
    if y.dim() and rows is not None:
        whole = slopes[0].shape
        reduced = reduced_shape(whole, rows)
        if reduced.numel() != y.numel() or any(slope.shape != whole for slope in slopes):
            return NotImplemented
    elif y.dim() and any(slope.shape != y.shape for slope in slopes):
        return NotImplemented
    value = replace(call, function=lambda: y, args=(), kwargs={})
    partials: list[Callable[[], Tensor] | None] = [partial(lambda slope: slope, slope) for slope in slopes]
    return apply_partials(value, [place.tensor for place, _ in known], partials, poles, reduced=reduced)


_ELEMENTWISE = (
    *("pow", "__pow__", "float_power", "atan2", "arctan2", "hypot", "logaddexp2", "xlogy", "xlog1py", "copysign"),
    *("remainder", "__mod__", "fmod", "ldexp"),
)


_IN_DOUBLE = (torch.float_power, Tensor.float_power)


def _double(value: Any) -> Any:
    return value.double() if is_unadorned(value) and value.is_floating_point() else value


def _of_several(of_one: Rule | None, call: Call, *args: Any, **kwargs: Any) -> Any:
    """Functions of several tensors; :mod:`.elementwise` serves some of them with numbers as arguments."""
    if call.function in _IN_DOUBLE:  # as PyTorch does first: derivatives may exceed a narrower type's range
        args, kwargs = tuple(map(_double, args)), {name: _double(value) for name, value in kwargs.items()}
        call = replace(call, args=args, kwargs=kwargs)
    if sum(isinstance(value, Tensor) for value in (*args, *kwargs.values())) > 1:
        return hold_derivatives(call, expand=True)
    return NotImplemented if of_one is None else of_one.version(call, *args, **kwargs)


for _name in _ELEMENTWISE:
    for _function in {getattr(space, _name, None) for space in (torch, Tensor, torch.special)} - {None}:
        lean_version_of([_function], exact=False)(partial(_of_several, RULES.get(_function)))


@lean_version_of([torch.logsumexp, Tensor.logsumexp, torch.special.logsumexp], exact=False)
def _logsumexp(call: Call, input: Tensor, dim: Any, keepdim: bool = False, *, out: Any = None) -> Any:
    return hold_derivatives(call, rows=dim)


@lean_version_of([torch.prod, Tensor.prod], exact=False)
def _prod(
    call: Call, input: Tensor, dim: Any = (), keepdim: bool = False, *, dtype: Any = None, out: Any = None
) -> Any:
    return hold_derivatives(call, rows=dim)


@lean_version_of([F.cosine_similarity], exact=False)
def _cosine_similarity(call: Call, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    return hold_derivatives(call, rows=dim, expand=True, poles=False)


@lean_version_of([torch.dist, Tensor.dist, F.ctc_loss], exact=False)
def _number(call: Call, *args: Any, **kwargs: Any) -> Any:
    return hold_derivatives(call)


_ROWS_OF_LOSSES = {
    **dict.fromkeys(
        (
            *(F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits),
            *(F.poisson_nll_loss, F.gaussian_nll_loss, F.soft_margin_loss, F.hinge_embedding_loss),
        )
    ),
    **dict.fromkeys((F.multi_margin_loss, F.multilabel_margin_loss, F.multilabel_soft_margin_loss), -1),
    **dict.fromkeys((F.cosine_embedding_loss, F.triplet_margin_loss), -1),
}
"""Losses, with the dimension that they always reduce."""


def _loss(rows: int | None, call: Call, *args: Any, **kwargs: Any) -> Any:
    return hold_derivatives(call, rows, poles=False)


for _function, _rows in _ROWS_OF_LOSSES.items():
    lean_version_of([_function], exact=False)(partial(_loss, _rows))


@lean_version_of([F.kl_div], exact=False)
def _kl_div(call: Call, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``kl_div``, whose input gradient needs the target alone."""
    return hold_derivatives(call, poles=False) if target.requires_grad else NotImplemented
