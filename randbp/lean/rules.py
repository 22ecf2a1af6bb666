"""The table of PyTorch functions with lean versions, which the other files of this folder fill."""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor


class LeanContext(Protocol):
    """The part of a session that lean versions may use."""

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
        session: Settings and seeds.
        rounds: Whether a version may round.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    session: LeanContext
    rounds: bool

    def run(self) -> Any:
        """Call PyTorch's function."""
        return self.function(*self.args, **self.kwargs)

    def run_on(self, input: Tensor) -> Any:
        """Call PyTorch's function with another first argument."""
        if self.args:
            return self.function(input, *self.args[1:], **self.kwargs)
        return self.function(**{**self.kwargs, "input": input})

    def without_input(self) -> Callable[[Tensor], Any]:
        """The call as a function of its first argument, which is not kept alive."""
        function, rest = self.function, self.args[1:]
        options = {name: value for name, value in self.kwargs.items() if name != "input"}
        return lambda input: function(input, *rest, **options)


Version = Callable[..., Any]
"""A lean version takes the :class:`Call`, then the arguments under the names that the function gives them."""


@dataclass(frozen=True)
class Rule:
    """A lean version, and whether its gradient is PyTorch's bit for bit (unless the call permits rounding)."""

    version: Version
    exact: bool

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the version accepts all arguments; PyTorch's functions accept some under NumPy's names, too."""
        parameters = _parameters(self.version)
        if parameters is None:
            return _binds(self.version, args, kwargs)
        positional, named, required = parameters
        given = positional[: len(args)]
        return (
            len(args) <= len(positional)
            and all(name in named and name not in given for name in kwargs)
            and all(name in kwargs or name in given for name in required)
        )


_signature = cache(inspect.signature)


def _binds(version: Version, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        _signature(version).bind(None, *args, **kwargs)
    except TypeError:
        return False
    return True


@cache
def _parameters(version: Version) -> tuple[tuple[str, ...], frozenset[str], tuple[str, ...]] | None:
    """Names of a version's parameters behind the call: by position, by name, and without a default.

    ``None`` if there are others, such as ``*args``; ``inspect.Signature.bind`` knows all, but takes longer than many
    an operation.
    """
    parameters = list(_signature(version).parameters.values())[1:]
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if len(named) < len(parameters):
        return None
    positional = tuple(one.name for one in named if one.kind is one.POSITIONAL_OR_KEYWORD)
    required = tuple(one.name for one in named if one.default is one.empty)
    return positional, frozenset(one.name for one in named), required


RULES: dict[Any, Rule] = {}


def lean_version_of(functions: Iterable[Any], exact: bool) -> Callable[[Version], Version]:
    """Register a lean version, which may return ``NotImplemented`` to let PyTorch's function run."""

    def register(version: Version) -> Version:
        for function in functions:
            RULES[function] = Rule(version, exact)
        return version

    return register


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
