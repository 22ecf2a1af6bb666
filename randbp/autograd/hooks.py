"""Hooks, transforms and modes around a piece of code: the one place that knows PyTorch's internals about them."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, overrides
from torch.overrides import TorchFunctionMode

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def hooks_in_force() -> Hooks | None:
    """Innermost pack and unpack hook of ``torch.autograd.graph.saved_tensors_hooks``; ``None`` if there are none.

    Where PyTorch does not tell (the function has no public name), the answer is ``None``.

    Example:
        >>> pack = lambda tensor: tensor
        >>> with torch.autograd.graph.saved_tensors_hooks(pack, pack):
        ...     hooks_in_force() == (pack, pack)
        True
    """
    autograd: Any = getattr(torch._C, "_autograd", None)
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return None
    try:
        found: Hooks | None = top(False)
    except TypeError:  # an older signature
        return None
    return found


def transformed() -> bool:
    """Whether ``torch.func`` transforms the code.

    Example:
        >>> found = []
        >>> _ = torch.vmap(lambda x: found.append(transformed()) or x)(torch.ones(2))
        >>> found, transformed()
        ([True], False)
    """
    functorch = getattr(torch._C, "_are_functorch_transforms_active", None)
    return functorch is not None and bool(functorch())


def transforms_at_work() -> bool:
    """Whether ``torch.func`` transforms the code, or forward-mode differentiation runs."""
    level: int = getattr(torch.autograd.forward_ad, "_current_level", -1)
    return transformed() or level >= 0


def current_backward() -> int:
    """Number of the backward pass that is under way in this thread, -1 outside of any.

    PyTorch has no public name for it; checkpointing itself asks the same. Where it does not tell, the answer is -1.

    Example:
        >>> current_backward()
        -1
    """
    current = getattr(torch._C, "_current_graph_task_id", None)
    return -1 if current is None else int(current())


def take_from_stack(mode: TorchFunctionMode) -> None:
    """Take a function mode from the stack of modes, wherever it lies, and leave the others as they are.

    An interrupted forward pass leaves modes in any order, while ``__exit__`` takes whichever is the innermost one.
    Where PyTorch does not show its stack (it has no public name), that is all that is done.

    Example:
        >>> lower, upper = TorchFunctionMode(), TorchFunctionMode()
        >>> with upper:
        ...     _ = lower.__enter__()
        ...     take_from_stack(lower)
        ...     take_from_stack(lower)  # no longer there
    """
    stack, pop, push = (
        getattr(overrides, name, None) for name in ("_get_current_function_mode_stack", "_pop_mode", "_push_mode")
    )
    if stack is None or pop is None or push is None:
        mode.__exit__(None, None, None)
        return
    above: list[Any] = []
    if not any(one is mode for one in stack()):
        return
    while (top := pop()) is not mode:
        above.append(top)
    for top in reversed(above):
        push(top)


_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def written_out(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """One of PyTorch's functions written in Python, such that modes see what it calls in its place.

    Such a function first asks whether a mode is there, and if so hands itself to it; inside, the mode is no longer
    asked. This copy does not ask. ``None`` if the function is not written so.

    Example:
        >>> class Print(TorchFunctionMode):
        ...     def __torch_function__(self, function, types, args=(), kwargs=None):
        ...         print(function.__name__)
        ...         return function(*args, **(kwargs or {}))
        >>> x = torch.ones(3)
        >>> with Print():
        ...     _ = written_out(torch.nn.functional.softmin)(x, dim=0)
        neg
        softmax
    """
    if not isinstance(function, FunctionType) or not set(_QUESTIONS) & set(function.__code__.co_names):
        return None
    names = {**function.__globals__, **dict.fromkeys(_QUESTIONS, lambda *_: False)}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
