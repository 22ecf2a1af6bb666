"""Needs that slopes serve: of activations, of functions of one tensor, of several tensors, of losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from inspect import signature as signature_of
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..codecs import Grid
from .held_slopes import Codec, Fused, blocks, hold_slopes, of_function, of_values, value_and_slopes
from .lean_call import Call, is_activation, is_plain, is_small, is_unadorned
from .memory_order import broadcast, reduced_shape, unexpanded
from .needs import POLES, SLOPE, SLOPES, Held, Version


@dataclass(frozen=True)
class Range:
    """The range of a derivative, and how it is computed in one pass with its rounding, if it can be."""

    low: float
    high: float
    fused: Fused | None = None


def fused(
    low: float, high: float, function: str, factor: float = 1.0, second: float = 0.0, third: float = 0.0
) -> Range:
    """The range of a derivative that :func:`randbp.kernels.to_grid` computes, given its parameters."""
    return Range(low, high, (function, [factor, second, third]))


def hold_slope(
    call: Call,
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    codec: Codec,
    inplace: bool = False,
    known: Fused | None = None,
) -> Any:
    """Compute an elementwise function, called with all entries and with some, holding its rounded derivative."""
    if inplace and unexpanded(x).shape != x.shape:
        return NotImplemented  # for PyTorch to refuse
    known = known if x.dtype != torch.float64 else None  # that is computed in single precision
    # The value is computed of all entries at once: the last bits of PyTorch's functions depend on where in memory an
    # entry lies.
    return hold_slopes(call, lambda: function(x), [x], [of_function(x, function, inplace, known)], codec, inplace)


@dataclass(frozen=True)
class Activation:
    """The derivative of an elementwise function, of a range that its options tell.

    Attributes:
        signature: The range, as a function of PyTorch's arguments; ``None`` if PyTorch's function is to run.
    """

    signature: Callable[..., Range | None]
    held: ClassVar[Held] = SLOPE

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the function, holding its derivative on a grid."""
        found, x = self.signature(*args, **kwargs), call.input
        if found is None or not is_plain(x):
            return NotImplemented
        codec = Grid.over(found.low, found.high, call.context.bits)
        inplace = works_in_place(self.signature, args, kwargs)
        return hold_slope(call, x, call.without_input(), codec, inplace, found.fused)


def works_in_place(signature: Version, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """The argument ``inplace`` of a call."""
    place = _place_of_inplace(signature)
    return bool(args[place] if place < len(args) else kwargs.get("inplace"))


@cache
def _place_of_inplace(signature: Version) -> int:
    names = list(signature_of(signature).parameters)
    return names.index("inplace") if "inplace" in names else len(names)


@dataclass(frozen=True)
class Slope:
    """The derivative of an elementwise function of one large tensor, at any place, and numbers.

    Attributes:
        range: The range of the derivative; ``None`` if it has no bound.
        poles: Whether it has poles; ``"powers"`` if it has some where a number among the arguments is below 1.
    """

    range: tuple[float, float] | None = None
    poles: bool | Literal["powers"] = False
    signature: ClassVar[None] = None

    @property
    def held(self) -> Held:
        """What suffices."""
        return POLES if self.poles else SLOPE

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the function, holding its derivative on a grid or in blocks."""
        if "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"), *args)
        places = [place for place, value in enumerate(args) if isinstance(value, Tensor)]
        numbers = [value for value in (*args, *kwargs.values()) if not isinstance(value, Tensor)]
        if len(places) != 1 or len(numbers) != len(args) + len(kwargs) - 1:
            return NotImplemented
        before, x, after, function = args[: places[0]], args[places[0]], args[places[0] + 1 :], call.function
        if not is_activation(x) or any(isinstance(number, complex) for number in numbers):
            return NotImplemented
        codec = self._codec(call.context.bits, numbers)
        return hold_slope(call, x, lambda part: function(*before, part, *after, **kwargs), codec, call.overwrites)

    def _codec(self, bits: int, numbers: list[Any]) -> Codec:
        if self.range is not None:
            return Grid.over(*self.range, bits)
        return blocks(bits, not all(n >= 1 for n in numbers) if self.poles == "powers" else self.poles)


Partials = Sequence[tuple[Tensor, Callable[[], Tensor] | None]]
"""Arguments, and the derivative with respect to each (``None``: it is 1)."""


@dataclass(frozen=True)
class Slopes:
    """Derivatives of a function of several tensors, in closed form.

    Attributes:
        signature: The derivatives, as a function of PyTorch's arguments; ``None`` if PyTorch's function is to run.
        poles: Whether they may be infinite.
    """

    signature: Callable[..., Partials | None]
    poles: bool = True

    @property
    def held(self) -> Held:
        """What suffices."""
        return POLES if self.poles else SLOPES

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the function, holding its derivatives, if that is worthwhile."""
        found, inplace = self.signature(*args, **kwargs), call.overwrites
        tensors = [tensor for tensor, _ in found or ()]
        if not any(map(is_activation, tensors)) or (inplace and not is_plain(tensors[0])):
            return NotImplemented
        sources = [None if values is None else of_values(values) for _, values in found or ()]
        return hold_slopes(call, call.run, tensors, sources, blocks(call.context.bits, self.poles), inplace)


def are_factors(*values: Any) -> bool:
    """Whether all are floating tensors, and none is a large one that stays alive anyway."""
    return all(
        is_unadorned(value)
        and value.layout is torch.strided
        and value.is_floating_point()
        and (is_activation(value) or is_small(unexpanded(value)))
        for value in values
    )


def quotient(input: Any, other: Any, *, rounding_mode: Any = None) -> Partials | None:
    """The derivatives ``1 / y`` and ``-x / y²`` of ``x / y``."""
    if rounding_mode is not None or not are_factors(input, other):
        return None
    return [(input, lambda: unexpanded(other).reciprocal()), (other, lambda: -(input / other) / other)]


def sum_and_quotient(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Partials | None:
    """The derivatives of ``x + a y / z``."""
    if not isinstance(input, Tensor) or not are_factors(tensor1, tensor2):
        return None
    return [
        (input, None),
        (tensor1, lambda: value * unexpanded(tensor2).reciprocal()),
        (tensor2, lambda: -value * (tensor1 / tensor2) / tensor2),
    ]


def log_of_sum(input: Any, other: Any) -> Partials | None:
    """The derivatives of ``log(exp x + exp y)``, which add up to 1."""
    if not are_factors(input, other):
        return None
    return [(input, lambda: torch.sigmoid(input - other)), (other, lambda: torch.sigmoid(other - input))]


def gated(input: Tensor, dim: int = -1) -> Partials | None:
    """The derivatives of ``x sigmoid(y)``, where ``x`` and ``y`` are the halves of a tensor."""
    if not is_activation(input) or not -input.dim() <= dim < input.dim() or input.shape[dim] % 2:
        return None
    value, gate = input.chunk(2, dim)

    def gate_slope() -> Tensor:
        share = gate.sigmoid()
        return (1 - share).mul_(share).mul_(value)

    return [(value, gate.sigmoid), (gate, gate_slope)]


@dataclass(frozen=True)
class ByAutograd:
    """Derivatives of a function in which each entry affects one entry of the result.

    They need not be written down: differentiating ``Σ_j y_j`` gives all at once, in the forward pass. Of that kind are
    elementwise functions of tensors, reductions of rows, and every loss, whose mean or sum is a single ``y``.

    Attributes:
        signature: The dimensions that the function reduces unless its result is a number, of PyTorch's arguments;
            ``NotImplemented`` if PyTorch's function is to run.
        expand: Whether it broadcasts its arguments.
        poles: Whether derivatives may be infinite.
        single: The need if one argument alone is a tensor.
        double: Whether PyTorch computes in double precision: derivatives may exceed a narrower type's range.
    """

    signature: Callable[..., Any] = lambda *args, **kwargs: None
    expand: bool = False
    poles: bool = True
    single: Slope | None = None
    double: bool = False

    @property
    def held(self) -> Held:
        """What suffices."""
        return POLES if self.poles else SLOPES

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the function, holding its derivatives."""
        if self.double:
            args, kwargs = tuple(map(_double, args)), {name: _double(value) for name, value in kwargs.items()}
            call = replace(call, args=args, kwargs=kwargs)
        rows = self.signature(*args, **kwargs)
        if rows is NotImplemented:
            return NotImplemented
        if self.expand and rows is None and sum(isinstance(v, Tensor) for v in (*args, *kwargs.values())) < 2:
            return NotImplemented if self.single is None else self.single.serve(call, *args, **kwargs)
        return hold_derivatives(call, rows, self.expand, self.poles)


def _double(value: Any) -> Any:
    return value.double() if is_unadorned(value) and value.is_floating_point() else value


def _differentiated(call: Call) -> dict[int | str, Tensor] | None:
    """The arguments that require gradients, if rounding their derivatives is worthwhile."""
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    tensors = {key: value for key, value in given if isinstance(value, Tensor)}
    if not any(map(is_activation, tensors.values())):
        return None
    if not all(is_unadorned(value) and not value.is_complex() for value in tensors.values()):
        return None
    return {key: value for key, value in tensors.items() if value.requires_grad}


def hold_derivatives(call: Call, rows: Any = None, expand: bool = False, poles: bool = True) -> Any:
    """Run a function, holding its rounded derivatives: see :class:`ByAutograd`."""
    wanted = _differentiated(call)
    if not wanted:
        return NotImplemented
    shape = None
    if expand:
        shape = broadcast(value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor))
        if shape is None or len({x.dtype for x in wanted.values()}) > 1:
            return NotImplemented

    def function(*leaves: Tensor) -> Tensor:
        new = dict(zip(wanted, leaves, strict=True))
        args = [new.get(key, value) for key, value in enumerate(call.args)]
        y: Tensor = call.function(*args, **{key: new.get(key, value) for key, value in call.kwargs.items()})
        return y

    y, found = value_and_slopes(function, *(x.detach().expand(shape or x.shape) for x in wanted.values()))
    known = [(x, slope.detach()) for x, slope in zip(wanted.values(), found, strict=True) if slope is not None]
    if not known:
        return NotImplemented
    if expand and any(x.shape != shape for x in wanted.values()):
        with torch.no_grad():
            y = call.run()  # PyTorch rounds otherwise where an expanded tensor takes another of its loops
    reduced, slopes = None, [slope for _, slope in known]
    if y.dim() and rows is not None:
        reduced = reduced_shape(slopes[0].shape, rows)
        if reduced.numel() != y.numel() or any(slope.shape != slopes[0].shape for slope in slopes):
            return NotImplemented
    elif y.dim() and any(slope.shape != y.shape for slope in slopes):
        return NotImplemented
    sources = [of_values(partial(torch.Tensor.detach, slope)) for slope in slopes]
    codec = blocks(call.context.bits, poles)
    return hold_slopes(call, lambda: y, [x for x, _ in known], sources, codec, reduced=reduced)
