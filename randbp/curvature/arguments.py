"""Checks of an optimiser's numeric arguments."""

from math import inf, nan
from numbers import Real

from torch import Tensor

from ..layers.integers import as_integer


def positive(name: str, value: object) -> int:
    """Check and return a positive integer."""
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer")
    return number


def check_number(name: str, value: object, low: float, below: float | None = None, exclude_low: bool = False) -> None:
    """Raise ``ValueError`` unless ``low <= value < below``; lr may be a tensor, as in PyTorch's optimisers."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    real = float(number) if isinstance(number, Real) and not isinstance(number, bool) else nan
    if not ((real > low if exclude_low else real >= low) and real < (inf if below is None else below)):
        bounds = f"{'above' if exclude_low else 'from'} {low}" + ("" if below is None else f" and below {below}")
        raise ValueError(f"{name}={value!r}: expected a number {bounds}")
