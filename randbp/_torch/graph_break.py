"""Functions that ``torch.compile`` leaves to Python."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def graph_break(reason: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function with ``torch.compiler.disable``, at the first call under a compiler.

    Used as a decorator that one imports all of Dynamo, which takes longer than everything else that randbp imports.
    The reason is for PyTorch's message where the graph must not break.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        made: list[Any] = []

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if not torch.compiler.is_compiling():
                return function(*args, **kwargs)
            if not made:
                made.append(torch.compiler.disable(function, reason=reason))
            result: T = made[0](*args, **kwargs)
            return result

        return call

    return decorate
