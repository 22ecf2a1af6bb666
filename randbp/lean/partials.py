"""Elementwise functions of several tensors: each partial derivative in a few bits.

The gradient of ``f(x, y, …)`` with respect to ``x`` is ``v ∂f/∂x``, summed over what was broadcast: linear in the
partial derivative, so any unbiased rounding of that will do. That of a small tensor is held whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch.second_derivatives import graph_edge, refuse_second_derivatives
from ..autograd.transforms import refuses_vectorised
from ..codecs import Stream
from .memory_order import flatten, memory_order, unexpanded, unflatten
from .rules import Call, is_activation, is_plain, is_small, is_unadorned, lean_version_of
from .slopes import Slopes, slopes


@dataclass(frozen=True)
class _Argument:
    """One of the tensors, and a function for the derivative with respect to it (``None``: the derivative is 1)."""

    tensor: Tensor
    partial: Callable[[], Tensor] | None


@dataclass(frozen=True)
class _Place:
    """The memory layout of a partial derivative."""

    shape: torch.Size
    order: tuple[int, ...]
    whole: bool


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        partials: list[Callable[[], Tensor] | None],
        edges: list[Tensor | None],
        kind: Slopes,
        inplace: bool,
        reduced: torch.Size | None,
        *tensors: Tensor,
    ) -> Tensor:
        seed = call.session.seed()
        noise, held = Stream(seed, tensors[0].device), []
        ctx.places = []
        for partial, wanted in zip(partials, ctx.needs_input_grad[6:], strict=True):
            slope = partial() if partial is not None and wanted else None
            if slope is None:
                ctx.places.append(None)
                continue
            place = _Place(slope.shape, memory_order(slope), is_small(slope))
            held.append(slope if place.whole else kind.encode(flatten(slope, place.order), noise))
            ctx.places.append(place)
        y: Tensor = call.run()  # after the derivatives, for it may overwrite an argument
        if inplace:
            ctx.mark_dirty(tensors[0])
        # The seed travels with the codes: activation checkpointing runs forward twice but keeps the first ctx.
        ctx.save_for_backward(torch.tensor(seed), *edges, *held)
        ctx.kind, ctx.dtypes, ctx.shapes = kind, [x.dtype for x in tensors], [x.shape for x in tensors]
        ctx.reduced = reduced
        return y

    @staticmethod
    @refuses_vectorised
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (output_grad,) = output_grads
        seed, *saved = ctx.saved_tensors
        count = len(ctx.places)
        edges, held = saved[:count], iter(saved[count:])
        grads: list[Tensor | None] = []
        with torch.no_grad():
            noise, v = Stream(int(seed), output_grad.device), output_grad
            v = v if ctx.reduced is None else v.reshape(ctx.reduced)
            for place, wanted, dtype, shape in zip(
                ctx.places, ctx.needs_input_grad[6:], ctx.dtypes, ctx.shapes, strict=True
            ):
                grad = v if wanted else None
                if place is not None:
                    grad = v * _slope(ctx.kind, place, next(held), noise).to(v.dtype)
                grads.append(None if grad is None else grad.sum_to_size(shape).to(dtype))
        guarded = refuse_second_derivatives("lean function of several tensors", tuple(grads), (*edges, output_grad))
        return *[None] * 6, *guarded


def _slope(kind: Slopes, place: _Place, held: Tensor, noise: Stream) -> Tensor:
    if place.whole:
        return held
    return unflatten(kind.decode(held, place.shape.numel(), noise), place.shape, place.order)


def _apply(call: Call, *arguments: _Argument, poles: bool = True, inplace: bool = False) -> Any:
    """Compute the function's value, holding rounded partial derivatives, if that is worthwhile."""
    tensors = [argument.tensor for argument in arguments]
    if not any(map(is_activation, tensors)) or (inplace and not is_plain(tensors[0])):
        return NotImplemented
    return apply_partials(call, tensors, [argument.partial for argument in arguments], poles, inplace)


def apply_partials(
    call: Call,
    tensors: list[Tensor],
    partials: list[Callable[[], Tensor] | None],
    poles: bool = True,
    inplace: bool = False,
    reduced: torch.Size | None = None,
) -> Tensor:
    """Compute the function's value, holding its rounded partial derivatives.

    Args:
        call: The call that gives the value.
        tensors: The arguments.
        partials: For each argument, a function for the derivative with respect to it (``None``: the derivative is 1).
        poles: Whether derivatives may be infinite.
        inplace: Whether the function overwrites the first argument.
        reduced: The output's shape with ones where dimensions are missing that the derivatives have.
    """
    kind, edges = slopes(call.session.bits, poles), [graph_edge(x) for x in tensors]
    y: Tensor = _Elementwise.apply(call, partials, edges, kind, inplace, reduced, *tensors)
    return y


def _are_factors(*values: Any) -> bool:
    """Whether all are floating tensors, and none is a large one that stays alive anyway."""
    return all(
        is_unadorned(value)
        and value.layout is torch.strided
        and value.is_floating_point()
        and (is_activation(value) or is_small(unexpanded(value)))
        for value in values
    )


@lean_version_of(
    [
        *(torch.div, torch.divide, torch.true_divide),
        *(Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__),
    ],
    exact=False,
)
def _quotient(call: Call, input: Any, other: Any, *, rounding_mode: Any = None, out: Any = None) -> Any:
    if rounding_mode is not None or out is not None:
        return NotImplemented
    return _divided(call, input, other)


@lean_version_of([Tensor.div_, Tensor.divide_, Tensor.true_divide_, Tensor.__itruediv__], exact=False)
def _quotient_in_place(call: Call, input: Any, other: Any, *, rounding_mode: Any = None) -> Any:
    return NotImplemented if rounding_mode is not None else _divided(call, input, other, inplace=True)


def _divided(call: Call, x: Any, y: Any, inplace: bool = False) -> Any:
    if not _are_factors(x, y):
        return NotImplemented
    return _apply(
        call,
        _Argument(x, lambda: unexpanded(y).reciprocal()),
        _Argument(y, lambda: -(x / y) / y),
        inplace=inplace,
    )


@lean_version_of([torch.addcdiv, Tensor.addcdiv], exact=False)
def _addcdiv(call: Call, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1, out: Any = None) -> Any:
    if out is not None or not isinstance(input, Tensor) or not _are_factors(tensor1, tensor2):
        return NotImplemented
    return _apply(
        call,
        _Argument(input, None),
        _Argument(tensor1, lambda: value * unexpanded(tensor2).reciprocal()),
        _Argument(tensor2, lambda: -value * (tensor1 / tensor2) / tensor2),
    )


@lean_version_of([torch.logaddexp, Tensor.logaddexp], exact=False)
def _logaddexp(call: Call, input: Any, other: Any, *, out: Any = None) -> Any:
    if out is not None or not _are_factors(input, other):
        return NotImplemented
    return _apply(
        call,
        _Argument(input, lambda: torch.sigmoid(input - other)),
        _Argument(other, lambda: torch.sigmoid(other - input)),
        poles=False,
    )


@lean_version_of([F.glu], exact=False)
def _glu(call: Call, input: Tensor, dim: int = -1) -> Any:
    if not is_activation(input) or not -input.dim() <= dim < input.dim() or input.shape[dim] % 2:
        return NotImplemented
    value, gate = input.chunk(2, dim)

    def gate_slope() -> Tensor:
        share = gate.sigmoid()
        return (1 - share).mul_(share).mul_(value)

    return _apply(call, _Argument(value, gate.sigmoid), _Argument(gate, gate_slope), poles=False)
