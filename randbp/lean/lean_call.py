"""A call of one of PyTorch's functions, and which tensors a lean version serves."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Level = Literal["exact", "rounded"] | None
"""Which lean versions may run: those with PyTorch's gradient bit for bit, all, or none."""


class Context(Protocol):
    """The part of :class:`.mode.LeanContext` that lean versions may use."""

    bits: int

    def seed(self) -> int:
        """Return a new seed."""

    def inside(self) -> AbstractContextManager[Any]:
        """A context in which lean versions are used again, for functions that a lean version itself calls."""


@dataclass(frozen=True)
class Call:
    """One call of a PyTorch function.

    Attributes:
        function: PyTorch's function.
        args: Its positional arguments.
        kwargs: Its named arguments.
        context: Settings and seeds.
        rounds: Whether a version may round.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Context
    rounds: bool

    @property
    def input(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else self.kwargs["input"]

    @property
    def overwrites(self) -> bool:
        """Whether the function's name says that it works in place."""
        return is_in_place(self.function)

    def run(self) -> Any:
        """Call PyTorch's function."""
        return self.function(*self.args, **self.kwargs)

    def without_input(self) -> Callable[[Tensor], Any]:
        """The call as a function of its first argument, which is not kept alive."""
        function, rest = self.function, self.args[1:]
        options = {name: value for name, value in self.kwargs.items() if name != "input"}
        return lambda input: function(input, *rest, **options)


def is_in_place(function: Callable[..., Any]) -> bool:
    """Whether a function's name says that it works in place.

    Example:
        >>> is_in_place(Tensor.exp_), is_in_place(Tensor.__ipow__), is_in_place(Tensor.__pow__)
        (True, True, False)
    """
    name = function.__name__
    return name.startswith("__i") if name.endswith("__") else name.endswith("_")


def is_unadorned(value: object) -> bool:
    """Whether a value is a tensor of PyTorch's own classes; for subclasses, functions may mean something else."""
    return type(value) in (Tensor, torch.nn.Parameter)


def is_plain(tensor: object) -> bool:
    """Whether a tensor is a dense, non-empty floating tensor that requires a gradient."""
    return (
        type(tensor) is Tensor
        and tensor.requires_grad
        and tensor.layout is torch.strided
        and tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        and tensor.numel() > 0
        and tensor.device.type != "meta"
    )


SMALL = 2**12
"""Tensors with fewer entries are not worth the time [entries]; see :func:`is_small`."""


def is_activation(value: object) -> bool:
    """Whether a value is a plain tensor worth rounding: not small, and not a leaf (leaves stay alive anyway)."""
    return isinstance(value, Tensor) and is_plain(value) and not value.is_leaf and not is_small(value)


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor has fewer than :data:`SMALL` entries."""
    return tensor.numel() < SMALL
