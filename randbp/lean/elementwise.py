"""Elementwise functions of one tensor, by their names: ``torch.f``, ``Tensor.f`` and, in place, ``f_``.

The input gradient is ``v φ'(x)``, linear in the derivative, so any unbiased rounding of that will do: on a fixed grid
where its range is known, else in blocks with scales of their own (:mod:`.slopes`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codecs import Grid
from .rules import RULES, Call, is_activation, lean_version_of
from .slopes import Slopes, slopes
from .smooth import SELU_SLOPES, hold_slope

_RANGES: dict[str, tuple[float, float]] = {
    "asinh": (0, 1),
    "arcsinh": (0, 1),
    "atan": (0, 1),
    "arctan": (0, 1),
    "cos": (-1, 1),
    "erf": (0, 1.12838),  # 2 / √π = 1.128379
    "erfc": (-1.12838, 0),
    "expit": (0, 0.25),
    "hardshrink": (0, 1),
    "ndtr": (0, 0.39895),  # 1 / √(2π) = 0.398942
    "selu": SELU_SLOPES,
    "sigmoid": (0, 0.25),
    "sin": (-1, 1),
    "sinc": (-1.3705, 1.3705),  # π · 0.436182 = 1.370306
    "softshrink": (0, 1),
    "tanh": (0, 1),
}
"""Functions whose derivative is bounded, and its range."""

_UNBOUNDED = [
    *("cosh", "exp", "exp2", "expm1", "sinh", "square", "__rpow__"),
    *("erfcx", "i0", "i0e", "i1", "i1e", "log_ndtr"),
]

_WITH_POLES = [
    *("acos", "acosh", "arccos", "arccosh", "arcsin", "arctanh", "asin", "atanh", "digamma", "erfinv", "lgamma"),
    *("log", "log10", "log1p", "log2", "logit", "reciprocal", "rsqrt", "sqrt", "tan", "__rdiv__", "__rtruediv__"),
    *("entr", "gammaln", "multigammaln", "mvlgamma", "ndtri", "psi"),
]

_POWERS = ["pow", "__pow__", "__ipow__", "float_power"]


def _register(name: str, kind_of: Callable[..., Slopes]) -> None:
    """Register a function and its in-place variant by name, in all of PyTorch's name spaces.

    Args:
        name: Name of the function.
        kind_of: Chooses how its derivative is held, given the bits per entry and the call's numeric arguments.
    """
    for space in (torch, Tensor, torch.special, torch.nn.functional):
        for each in (name, f"{name}_"):
            function = getattr(space, each, None)
            if callable(function) and function not in RULES:  # :mod:`.smooth` has some with options
                inplace = each == f"{name}_" or name == "__ipow__"
                lean_version_of([function], exact=False)(partial(_elementwise, kind_of, inplace))


def _elementwise(kind_of: Callable[..., Slopes], inplace: bool, call: Call, *args: Any, **kwargs: Any) -> Any:
    """Run a function of numbers and one tensor, at any position among the arguments."""
    if "input" in kwargs:
        kwargs = dict(kwargs)
        args = (kwargs.pop("input"), *args)
    places = [place for place, value in enumerate(args) if isinstance(value, Tensor)]
    numbers = [value for value in (*args, *kwargs.values()) if not isinstance(value, Tensor)]
    if len(places) != 1 or len(numbers) != len(args) + len(kwargs) - 1 or any(isinstance(n, complex) for n in numbers):
        return NotImplemented
    before, x, after, function = args[: places[0]], args[places[0]], args[places[0] + 1 :], call.function
    if not is_activation(x):
        return NotImplemented
    kind = kind_of(call.session.bits, *numbers)
    return hold_slope(call, x, lambda part: function(*before, part, *after, **kwargs), kind, inplace)


def _power(bits: int, *numbers: Any) -> Slopes:
    """The slopes of ``x^n`` or ``n^x``, which have poles only if an exponent may be below 1."""
    return slopes(bits, poles=not all(number >= 1 for number in numbers))


for _name, (_low, _high) in _RANGES.items():
    _register(_name, lambda bits, *_, low=_low, high=_high: Grid.over(low, high, bits))
for _name in (*_UNBOUNDED, *_WITH_POLES):
    _register(_name, lambda bits, *_, poles=_name in _WITH_POLES: slopes(bits, poles))
for _name in _POWERS:
    _register(_name, _power)
