"""Where lean versions step in: while a module of the model runs its forward pass in training mode."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .._torch.hooks import Hooks, hooks_in_force, put_on_stack, take_from_stack, transforms_at_work
from ..draws.seeds import Integers, SeedStream
from .lean_call import Call, Level
from .rules import RULES

_KEY = 0x6C65616E  # keeps these seeds apart from those of layers


@dataclass(frozen=True)
class _Frame:
    """A module that is running."""

    level: Level
    hooks: Hooks | None


class LeanContext:
    """Settings that the modules of one model share, and per thread the module that runs.

    Each module of the model tells when it is entered and left (:class:`Part`). While the innermost one that runs is to
    be lean, calls of PyTorch's functions go through a :class:`torch.overrides.TorchFunctionMode`; while it is not (in
    ``eval()`` mode or without grad), none is there: functions and modules of PyTorch look for modes before they take a
    faster path. Replicas in other threads, copies and pickles work alike.

    Args:
        bits: Bits per entry where a version rounds.
        clock: Seed, training step and how often it was set, which determine the noise.

    Attributes:
        paused: Whether everything is PyTorch's for now.
    """

    paused = False

    def __init__(self, bits: int, clock: Integers) -> None:
        self.bits, self._stream = bits, SeedStream(clock, _KEY)
        self._running = _Running(self)

    def seed(self) -> int:
        """Return a new seed, hashed from the clock and a count since it was set; the same one in a recomputation."""
        frame = self._running.frame  # within hooks of lean mode's own, too, those around the module count
        return self._stream.drawn(None if frame is None else frame.hooks)

    @contextmanager
    def measured(self, clock: Integers, paused: bool) -> Iterator[None]:
        """Draw by another clock, or be paused, for as long as the block runs, and leave no trace."""
        before = self.__getstate__()
        self._stream, self.paused = SeedStream(clock, _KEY), paused
        try:
            yield
        finally:
            vars(self).update(before | {"paused": before.get("paused", False)})

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of PyTorch, or its lean version."""
        rule = RULES.get(function)
        if rule is None or self.paused or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        frame = self._running.frame
        if (
            frame is None
            or frame.level is None
            or (frame.level == "exact" and rule.level != "exact")
            or transforms_at_work()
        ):
            return function(*args, **kwargs)
        if "out" in kwargs:
            if kwargs["out"] is not None:
                return function(*args, **kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        # Hooks that the module's own code set up, such as those of a checkpoint of a few lines, must see the same
        # operations when those lines run again, outside any module: PyTorch's.
        if hooks_in_force() != frame.hooks or not rule.takes(args, kwargs):
            return function(*args, **kwargs)
        call = Call(function, args, kwargs, self, rounds=frame.level == "rounded")
        result = rule.need.serve(call, *args, **kwargs)
        return call.run() if result is NotImplemented else result

    def inside(self) -> TorchFunctionMode:
        """A context in which lean versions step in again, for what a lean version itself calls."""
        return self._running.mode

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._running = _Running(self)


@dataclass(frozen=True)
class Part:
    """Enters and leaves lean mode around each call of a module: see :func:`randbp._torch.hooks.watch_calls`.

    Attributes:
        context: The model's.
        level: Of this module, in training mode.
    """

    context: LeanContext
    level: Level

    def enter(self, module: nn.Module) -> "_State":
        """Note that the module is called."""
        level = self.level if module.training and torch.is_grad_enabled() else None
        return self.context._running.go_to(_Frame(level, hooks_in_force()))

    def leave(self, state: "_State") -> None:
        """Note that the call ended or failed."""
        self.context._running.go_back(state)


_State = tuple[_Frame | None, int | None]
"""What ran before, and where the mode was on the stack: below how many others, ``None`` if it was not there."""


class _Running(threading.local):
    def __init__(self, session: LeanContext) -> None:
        self.mode = _Mode(session)
        self.frame: _Frame | None = None
        self._is_there = False

    def go_to(self, frame: _Frame) -> _State:
        """Run something else, and return what ran before."""
        before, above = self.frame, None
        if frame.level is None and self._is_there:
            self._is_there, above = False, take_from_stack(self.mode)
        elif frame.level is not None and not self._is_there:
            put_on_stack(self.mode, 0)
            self._is_there = True
        self.frame = frame
        return before, above

    def go_back(self, state: _State) -> None:
        """Return to what ran before."""
        self.frame, above = state
        was_there = self.frame is not None and self.frame.level is not None
        if self._is_there and not was_there:
            take_from_stack(self.mode)
        elif was_there and not self._is_there and above is not None:
            put_on_stack(self.mode, above)
        self._is_there = was_there


class _Mode(TorchFunctionMode):
    passes_layers_by = True

    def __init__(self, session: LeanContext) -> None:
        super().__init__()
        self._session = session

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._session.call(func, args, kwargs or {})
