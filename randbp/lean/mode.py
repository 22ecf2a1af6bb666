"""Where lean versions step in: while a module of the model runs its forward pass in training mode."""

import sys
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..autograd.hooks import Hooks, hooks_in_force, take_from_stack, transforms_at_work
from ..autograd.recomputation import Recomputation
from ..estimators.seeds import Integers, next_seed
from .rules import RULES, Call

Level = Literal["exact", "rounded"] | None
"""Which lean versions may run: those with PyTorch's gradient bit for bit, all, or none."""

_KEY = 0x6C65616E  # keeps these seeds apart from those of layers


@dataclass(frozen=True)
class _Frame:
    """A module that is running, and the Python frame that runs its hooks and its forward pass."""

    level: Level
    hooks: Hooks | None
    caller: FrameType


class Session:
    """Settings that the modules of one model share, and per thread the modules that run.

    Hooks of the modules tell when each is entered and left; while at least one runs, calls of PyTorch's functions go
    through a :class:`torch.overrides.TorchFunctionMode`. Replicas in other threads, copies and pickles work alike.

    PyTorch calls no hook of a module that a ``KeyboardInterrupt`` or ``SystemExit`` leaves. What counts as running is
    therefore only what is still on the thread's call stack: afterwards everything is PyTorch's at once.

    Args:
        bits: Bits per entry where a version rounds.
        clock: Seed, training step and how often it was set, which determine the noise.
    """

    def __init__(self, bits: int, clock: Integers) -> None:
        self.bits, self.clock = bits, clock
        self._place = [_KEY, 0, 0]
        self._recomputation = Recomputation()
        self._running = _Running(self)

    def seed(self) -> int:
        """A new seed: hashed from the clock and the number of seeds since it was set; the same in a recomputation."""
        frame = self._running.innermost()  # within hooks of lean mode's own, too, those around the module count
        hooks = None if frame is None else frame.hooks
        return self._recomputation.seed(lambda: next_seed(self.clock.values, self._place), hooks)

    def enter(self, level: Level, module: nn.Module, args: Any) -> None:
        """A module's forward pass begins (a forward pre-hook)."""
        if torch.compiler.is_compiling():
            return
        running = self._running
        running.forget_stopped()
        if not running.frames:
            running.mode.leave()  # which an interrupted pass did not
            running.mode.enter()
        running.frames.append(_Frame(level if module.training else None, hooks_in_force(), sys._getframe(1)))

    def leave(self, *_: Any) -> None:
        """A module's forward pass ended, or failed (a forward hook that is always called)."""
        if torch.compiler.is_compiling():
            return
        running = self._running
        running.forget_stopped()  # a module that failed has stopped; one that ended is about to
        if running.frames and running.frames[-1].caller is sys._getframe(1):
            running.frames.pop()
        if not running.frames:
            running.mode.leave()

    def close(self) -> None:
        """Leave whatever an interrupted forward pass of this thread did not leave."""
        self._running.frames.clear()
        self._running.mode.leave()

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of PyTorch, or its lean version."""
        rule = RULES.get(function)
        if rule is None or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        frame = self._running.innermost()
        if frame is None or frame.level is None or (frame.level == "exact" and not rule.exact) or transforms_at_work():
            return function(*args, **kwargs)
        # Hooks that the module's own code set up, such as those of a checkpoint of a few lines, must see the same
        # operations when those lines run again, outside any module: PyTorch's.
        if hooks_in_force() != frame.hooks or not rule.takes(args, kwargs):
            return function(*args, **kwargs)
        call = Call(function, args, kwargs, self, rounds=frame.level == "rounded")
        result = rule.version(call, *args, **kwargs)
        return call.run() if result is NotImplemented else result

    def inside(self) -> TorchFunctionMode:
        """A context in which lean versions step in again, for what a lean version itself calls."""
        return self._running.mode

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._running = _Running(self)


class _Running(threading.local):
    def __init__(self, session: Session) -> None:
        self.frames: list[_Frame] = []
        self.mode = _Mode(session)

    def innermost(self) -> _Frame | None:
        """The module that runs, if one does."""
        self.forget_stopped()
        return self.frames[-1] if self.frames else None

    def forget_stopped(self) -> None:
        """Drop modules that were interrupted; their frames would keep activations alive."""
        while self.frames and not _is_running(self.frames[-1].caller):
            self.frames.pop()


def _is_running(frame: FrameType) -> bool:
    """Whether a Python frame is on this thread's call stack (that of a running module is near its top)."""
    current: FrameType | None = sys._getframe(1)
    while current is not None and current is not frame:
        current = current.f_back
    return current is frame


class _Mode(TorchFunctionMode):
    _entered = False

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._session.call(func, args, kwargs or {})

    def enter(self) -> None:
        """Step in from now on."""
        self.__enter__()
        self._entered = True

    def leave(self) -> None:
        """Step in no longer."""
        if self._entered:
            take_from_stack(self)
        self._entered = False
