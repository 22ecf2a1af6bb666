"""Hooks, transforms, modes and autocast around a call: the one place that knows PyTorch's internals about them."""

import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn, overrides
from torch.overrides import TorchFunctionMode

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def hooks_in_force() -> Hooks | None:
    """Innermost pack and unpack hook of ``torch.autograd.graph.saved_tensors_hooks``; ``None`` if there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def transformed() -> bool:
    """Whether the running code is inside a ``torch.func`` transform."""
    return torch._C._are_functorch_transforms_active()


def transforms_at_work() -> bool:
    """Whether the running code is inside a ``torch.func`` transform or forward-mode differentiation."""
    return transformed() or torch.autograd.forward_ad._current_level >= 0


def current_backward() -> int:
    """Number of the backward pass that is running in this thread, as checkpointing asks for it; -1 if there is none."""
    return torch._C._current_graph_task_id()


def take_from_stack(mode: TorchFunctionMode) -> int | None:
    """Remove a function mode from any place on the stack of modes, and leave the other modes as they are.

    Returns:
        How many modes were above it, for :func:`put_on_stack`; ``None`` if it was not there.
    """
    if not any(one is mode for one in overrides._get_current_function_mode_stack()):
        return None
    above: list[Any] = []
    while (top := overrides._pop_mode()) is not mode:
        above.append(top)
    for top in reversed(above):
        overrides._push_mode(top)
    return len(above)


def put_on_stack(mode: TorchFunctionMode, above: int) -> None:
    """Put a function mode back on the stack of modes, below as many others as when it was removed."""
    if not above:
        mode.__enter__()
        return
    taken = [overrides._pop_mode() for _ in range(min(above, len(overrides._get_current_function_mode_stack())))]
    overrides._push_mode(mode)
    for top in reversed(taken):
        overrides._push_mode(top)


_NOTHING = nullcontext()


def apart_from_modes(*tensors: Tensor | None) -> AbstractContextManager[Any]:
    """A context whose code no function mode sees, if all that are there have the attribute ``passes_layers_by``.

    A mode is asked whenever a tensor is asked for as little as its shape. Of tensors of other classes than PyTorch's
    own, which may look after themselves, nothing is hidden.
    """
    modes = overrides._get_current_function_mode_stack()
    if not modes or not all(getattr(mode, "passes_layers_by", False) for mode in modes):
        return _NOTHING
    if any(type(tensor) not in (Tensor, nn.Parameter, type(None)) for tensor in tensors):
        return _NOTHING
    apart: AbstractContextManager[Any] = torch._C.DisableTorchFunction()
    return apart


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the tensor's device; a tensor without data is on no device that autocasts."""
    if tensor.is_meta or not torch.is_autocast_enabled(tensor.device.type):
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


class Around(Protocol):
    """Code to run before and after each call of a module. It is copied and pickled along with the module."""

    def enter(self, module: nn.Module) -> Any:
        """Run before the call."""

    def leave(self, token: Any) -> None:
        """Run after the call has ended or failed; ``token`` is what :meth:`enter` returned."""


class _Calls:
    """Runs in place of a module's ``_call_impl``."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Callable[[], Any] = weakref.ref(module)  # which holds this object
        self.around: list[Around] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._module()._call_impl(*args, **kwargs)
        # Replicas of nn.DataParallel share this object with the module that they were made of: which is it?
        caller = sys._getframe(1).f_locals.get("self")
        module: Any = (
            caller if isinstance(caller, nn.Module) and caller.__dict__.get(_CALLS) is self else self._module()
        )
        entered: list[tuple[Around, Any]] = []
        try:
            for around in self.around:
                entered.append((around, around.enter(module)))
            return module._call_impl(*args, **kwargs)
        finally:
            while entered:
                around, token = entered.pop()
                around.leave(token)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self._module(), "around": self.around}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._module, self.around = weakref.ref(state["module"]), state["around"]
        state["module"].__dict__[_IMPLEMENTATION] = self  # which modules do not copy or pickle themselves


_IMPLEMENTATION, _CALLS = "_compiled_call_impl", "_randbp_calls"


def watch_calls(module: nn.Module, around: Around) -> Callable[[], None]:
    """Run code around each call of a module (and around its hooks) without registering a hook on it.

    A module with hooks is another one to PyTorch: its attention layers leave their fast paths, compiled graphs call the
    hooks, and other libraries look for them. ``nn.Module.compile`` has a call of the module run something else; that is
    where this stands in. A module that is compiled that way is left alone: its operations are the graph's. Copies and
    pickles of the module are watched, too.

    Returns:
        A function that takes it back; calling it twice is harmless.
    """
    if not hasattr(nn.Module, _IMPLEMENTATION):
        return _by_hooks(module, around)
    state = module.__dict__
    calls: _Calls | None = state.get(_CALLS)
    if calls is None:
        if state.get(_IMPLEMENTATION) is not None:
            return lambda: None
        state[_CALLS] = state[_IMPLEMENTATION] = calls = _Calls(module)
    calls.around.append(around)

    def stop() -> None:
        calls.around[:] = [other for other in calls.around if other is not around]
        if not calls.around and state.get(_CALLS) is calls:
            del state[_CALLS]
            if state.get(_IMPLEMENTATION) is calls:  # or else it was compiled since
                del state[_IMPLEMENTATION]

    return stop


def watchers(module: nn.Module) -> tuple[Around, ...]:
    """The code that :func:`watch_calls` runs around the calls of a module, where PyTorch has a place for it."""
    calls: _Calls | None = module.__dict__.get(_CALLS)
    return () if calls is None else tuple(calls.around)


def _by_hooks(module: nn.Module, around: Around) -> Callable[[], None]:
    """:func:`watch_calls` by hooks, where PyTorch has no such place."""
    tokens: list[Any] = []
    before = module.register_forward_pre_hook(lambda module, args: tokens.append(around.enter(module)))
    after = module.register_forward_hook(lambda *_: around.leave(tokens.pop()), always_call=True)

    def stop() -> None:
        before.remove()
        after.remove()

    return stop


_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def written_out(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The Python body of one of PyTorch's functions, so that modes see the functions that it calls.

    Such a function first checks whether a mode is active, and if so passes itself to it; inside, the mode is no longer
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
