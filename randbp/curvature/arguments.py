"""Checks of arguments."""

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


def described(value: object) -> str:
    """A value in a line of an error message: its type and shape if it is a tensor.

    Example:
        >>> import torch
        >>> described(torch.zeros(2, 3)), described("x")
        ('torch.float32 [2, 3]', "'x'")
    """
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return " ".join(f"{value!r:.60}".split())
