"""Which functions of PyTorch have a lean version: a register that the files beside this one fill."""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor


class Session(Protocol):
    """What a lean version may ask for."""

    bits: int

    def seed(self) -> int:
        """A seed that was never given before."""

    def inside(self) -> AbstractContextManager[Any]:
        """Lean versions step in again, for what a version itself calls."""


@dataclass(frozen=True)
class Call:
    """One call of a function of PyTorch.

    Attributes:
        run: The function itself; ``run()`` is what would have happened.
        session: Settings and seeds.
        rounds: Whether a version may round.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    session: Session
    rounds: bool

    def run(self) -> Any:
        """What PyTorch would have done."""
        return self.function(*self.args, **self.kwargs)

    def run_on(self, input: Tensor) -> Any:
        """The same with another first argument."""
        if self.args:
            return self.function(input, *self.args[1:], **self.kwargs)
        return self.function(**{**self.kwargs, "input": input})

    def without_input(self) -> Callable[[Tensor], Any]:
        """The function of its first argument alone, which it does not keep alive."""
        function, rest = self.function, self.args[1:]
        options = {name: value for name, value in self.kwargs.items() if name != "input"}
        return lambda input: function(input, *rest, **options)


Version = Callable[..., Any]
"""Takes the :class:`Call`, then the arguments as the function names them."""


@dataclass(frozen=True)
class Rule:
    """A lean version, and whether its gradient is PyTorch's bit for bit (unless the call says it may round)."""

    version: Version
    exact: bool

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the version knows all arguments; PyTorch's functions know some by NumPy's names, too."""
        try:
            _signature(self.version).bind(None, *args, **kwargs)
        except TypeError:
            return False
        return True


_signature = cache(inspect.signature)

RULES: dict[Any, Rule] = {}


def lean_version_of(functions: Iterable[Any], exact: bool) -> Callable[[Version], Version]:
    """Register a lean version; it may return ``NotImplemented`` to let PyTorch's run."""

    def register(version: Version) -> Version:
        for function in functions:
            RULES[function] = Rule(version, exact)
        return version

    return register


def is_unadorned(value: object) -> bool:
    """Whether a value is a tensor of PyTorch's own classes, for whose subclasses functions may mean something else."""
    return type(value) in (Tensor, torch.nn.Parameter)


def is_plain(tensor: object) -> bool:
    """Whether a tensor is one of numbers in memory that autograd follows."""
    return (
        type(tensor) is Tensor
        and tensor.requires_grad
        and tensor.layout is torch.strided
        and tensor.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        and tensor.numel() > 0
        and tensor.device.type != "meta"
    )


SMALL = 2**12
"""Tensors of fewer entries are not worth the time [entries]; :func:`is_small` asks."""


def is_activation(value: object) -> bool:
    """Whether a value is a plain tensor worth rounding: not small, and no leaf (parameters and inputs live anyway)."""
    return isinstance(value, Tensor) and is_plain(value) and not value.is_leaf and not is_small(value)


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor has too few entries (:data:`SMALL`) for what is saved to be worth the time."""
    return tensor.numel() < SMALL
