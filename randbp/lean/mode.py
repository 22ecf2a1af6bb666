"""Where lean versions step in: while a module of the model runs its forward pass in training mode."""

import threading
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..estimators.seeds import Integers, next_seed
from .hooks import Hooks, hooks_in_force, transforms_at_work
from .rules import RULES, Call

Level = Literal["exact", "rounded"] | None
"""Which lean versions may run: those with PyTorch's gradient bit for bit, all, or none."""

_KEY = 0x6C65616E  # keeps these seeds apart from those of layers


@dataclass(frozen=True)
class _Frame:
    """A module that is running."""

    level: Level
    hooks: Hooks | None


class Session:
    """Settings that the modules of one model share, and per thread the modules that run.

    Hooks of the modules tell when each is entered and left; while at least one runs, calls of PyTorch's functions go
    through a :class:`torch.overrides.TorchFunctionMode`. Replicas in other threads, copies and pickles work alike.

    Args:
        bits: Bits per entry where a version rounds.
        clock: Seed, training step and how often it was set, which determine the noise.
    """

    def __init__(self, bits: int, clock: Integers) -> None:
        self.bits, self.clock = bits, clock
        self._place = [_KEY, 0, 0]
        self._running = _Running(self)

    def seed(self) -> int:
        """A new seed: hashed from the clock and the number of seeds since it was set."""
        return next_seed(self.clock.values, self._place)

    def enter(self, level: Level, module: nn.Module, args: Any) -> None:
        """A module's forward pass begins (a forward pre-hook)."""
        if torch.compiler.is_compiling():
            return
        running = self._running
        running.frames.append(_Frame(level if module.training else None, hooks_in_force()))
        if len(running.frames) == 1:
            running.mode.__enter__()

    def leave(self, *_: Any) -> None:
        """A module's forward pass ended, or failed (a forward hook that is always called)."""
        if torch.compiler.is_compiling() or not self._running.frames:
            return
        self._running.frames.pop()
        if not self._running.frames:
            self._running.mode.__exit__(None, None, None)

    def close(self) -> None:
        """Leave whatever an interrupted forward pass of this thread did not leave."""
        while self._running.frames:
            self.leave()

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of PyTorch, or its lean version."""
        rule = RULES.get(function)
        if rule is None or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        frame = self._running.frames[-1]
        if frame.level is None or (frame.level == "exact" and not rule.exact) or transforms_at_work():
            return function(*args, **kwargs)
        # Hooks that the module's own code set up, such as those of a checkpoint of a few lines, must see the same
        # operations when those lines run again, outside any module: PyTorch's.
        if hooks_in_force() != frame.hooks:
            return function(*args, **kwargs)
        call = Call(function, args, kwargs, self, rounds=frame.level == "rounded")
        result = rule.version(call, *args, **kwargs)
        return call.run() if result is NotImplemented else result

    def __getstate__(self) -> dict[str, Any]:
        return {"bits": self.bits, "clock": self.clock, "_place": self._place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._running = _Running(self)


class _Running(threading.local):
    def __init__(self, session: Session) -> None:
        self.frames: list[_Frame] = []
        self.mode = _Mode(session)


class _Mode(TorchFunctionMode):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._session.call(func, args, kwargs or {})
