"""Which module of a model is running."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def running_module(model: nn.Module) -> Iterator[Callable[[], str | None]]:
    """Follow the forward passes of a model and its modules within the block.

    Yields:
        A function that returns the name of the innermost module at work, ``""`` for the model itself, ``None`` while
        none of them is.
    """
    stack: list[str] = []

    def enter(name: str, *_: Any) -> None:
        stack.append(name)

    def leave(*_: Any) -> None:
        if stack:
            stack.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield lambda: stack[-1] if stack else None
