"""Functions with a kink: one bit per entry says which of two slopes the gradient takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._torch.state import has_storage
from ..codecs import Mask
from ..kernels import relu
from ..kernels.mask_bits import chosen
from .comparisons import clamp_between
from .lean_call import Call, is_plain
from .lean_function import Made, run_lean
from .memory_order import flatten, laid_out_as, memory_order, unflatten
from .needs import SIDE, Held
from .recompute import recipe_of, remember
from .slope_needs import works_in_place


@dataclass(frozen=True)
class Sides:
    """Where a function has which slope.

    Attributes:
        test: The comparison (:func:`randbp.kernels.inside`) that an entry passes where the first slope holds. It is
            PyTorch's own, so that NaN and the kinks themselves fall on the same side.
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


RELU = Sides("not_under")
"""ReLU's."""

SIXTH = float(torch.tensor(1 / 6))
"""PyTorch's slope of ``hardsigmoid``, which is single precision's for all dtypes."""


LIKE_GRADIENT = "between"
"""The test of functions whose gradient PyTorch lays out in memory as the output gradient, not as the input."""


def times_slopes(grad: Tensor, bits: Tensor, order: tuple[int, ...], slope: float, other: float | None) -> Tensor:
    """An output gradient times one slope where a bit is set, and the other elsewhere: see :class:`Sides`."""
    flat, mask = flatten(grad, order), Mask()
    if torch.is_grad_enabled() or not has_storage(grad):
        result = chosen(flat, mask.decode(bits, len(flat)), slope, other)
    else:
        result = mask.apply(bits, flat, slope, other)
    return unflatten(result, grad.shape, order)


@dataclass(frozen=True)
class Kink:
    """On which side of a kink each entry was.

    Attributes:
        signature: The sides, as a function of PyTorch's arguments; ``None`` if PyTorch's function is to run.
    """

    signature: Callable[..., Sides | None]
    held: ClassVar[Held] = SIDE

    def serve(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Run the function, holding a bit per entry."""
        sides = self.signature(*args, **kwargs)
        inplace = call.overwrites or works_in_place(self.signature, args, kwargs)
        return NotImplemented if sides is None else hold_sides(call, sides, inplace)


def hold_sides(call: Call, sides: Sides, inplace: bool, linked: bool = True) -> Any:
    """Run a function, holding a bit per entry; ``linked`` if PyTorch's gradient depends on ``x`` with derivative 0."""
    x = call.input
    if not is_plain(x):
        return NotImplemented
    order, recipe = memory_order(x), recipe_of(x)

    def make() -> Made:
        flat = flatten(x, order)
        if sides is RELU and not inplace:
            values, bits = relu(flat)
            y: Tensor = unflatten(values, x.shape, order)
        else:
            bits = Mask().where(flat, sides.test, sides.low, sides.high)  # the function may overwrite x
            y = call.run()

        def vjp(v: Tensor, wanted: tuple[bool, ...], noise: object, bits: Tensor) -> list[Tensor]:
            grad = times_slopes(v, bits, order, sides.slope, sides.other)
            return [laid_out_as(v, grad) if sides.test == LIKE_GRADIENT else grad]

        return y, (bits,), vjp

    y = run_lean("Piecewise", make, x, exact=True, inplace=inplace, linked=[x] if linked else [])
    if recipe is not None:
        step = call.without_input()
        remember(y, recipe.then_relu(step) if sides is RELU else recipe.then(step))
    return y


def clamp(call: Call, input: Tensor, min: Any = None, max: Any = None) -> Any:
    """``clamp`` between numbers, or between tensors."""
    if min is max is None:
        return NotImplemented
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return NotImplemented if call.overwrites else clamp_between(call, input, min, max)
    low, high = -torch.inf if min is None else min, torch.inf if max is None else max
    return hold_sides(call, Sides("within", low, high), call.overwrites, linked=False)
