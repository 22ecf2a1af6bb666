"""Installation of lean mode in a model, and its removal."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from .._torch.hooks import watch_calls
from ..draws.seeds import Integers
from .lean_call import Level
from .mode import LeanContext, Part
from .split_batch import join_chain, split_chains

Lean = bool | Literal["exact"] | Mapping[str, bool | Literal["exact"]]
"""The values of ``lean=``; see :func:`randbp.randomize`."""

_LEVELS: dict[Any, Level] = {True: "rounded", "exact": "exact", False: None}


def check_lean(lean: object, bits: object, parts: object = 1) -> None:
    """Raise ``ValueError`` unless these are settings of lean mode.

    Example:
        >>> check_lean("fast", 4)
        Traceback (most recent call last):
        ValueError: lean='fast': expected True, False, 'exact', or a mapping from layer names or globs to these
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits={bits!r}: expected an integer from 1 to 8")
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"parts={parts!r}: expected an integer >= 1")
    named = lean if isinstance(lean, Mapping) else {"": lean}
    known = all(isinstance(value, bool) or (isinstance(value, str) and value == "exact") for value in named.values())
    if not known or not all(isinstance(key, str) for key in named):
        raise ValueError(
            f"lean={lean!r}: expected True, False, 'exact', or a mapping from layer names or globs to these"
        )


class LeanHandle:
    """Result of :func:`make_lean`: it undoes the installation."""

    def __init__(
        self, stops: list[Callable[[], None]], chains: list[nn.Module], model: nn.Module, around: Part
    ) -> None:
        self._stops, self._chains, self._model, self._around = stops, chains, model, around

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which code is as lean as the model itself, in training mode."""
        if not self._stops or torch.compiler.is_compiling():
            yield
            return
        state = self._around.enter(self._model)
        try:
            yield
        finally:
            self._around.leave(state)

    def remove(self) -> None:
        """Restore the very same model. Doing so twice is harmless."""
        for stop in self._stops:
            stop()
        for chain in self._chains:
            join_chain(chain)
        self._stops, self._chains = [], []


def make_lean(
    model: nn.Module,
    lean: Lean,
    bits: int,
    clock: Integers,
    apart: Collection[nn.Module] = (),
    parts: int = 1,
    whole: Collection[nn.Module] = (),
) -> LeanHandle:
    """Let the operations of a model store only what their gradients need, in training mode.

    Args:
        model: Any module.
        lean: ``True``, ``"exact"``, or a mapping from names or globs of modules to these or ``False``: the last entry
            that matches a module, or else one around it, holds; a module that nothing matches is lean.
        bits: Bits per entry where a version rounds.
        clock: Seed, training step, and the number of times that it was set.
        apart: Modules that an estimator serves; inside them nothing else is rounded.
        parts: Into how many parts of the batch the wide stretches of chains are split, where lean versions may round.
        whole: Modules that need the whole batch at once.

    Raises:
        ValueError: If a setting is invalid, or a name or glob matches no module.
    """
    check_lean(lean, bits, parts)
    level_of = _levels(model, lean)
    session, stops = LeanContext(bits, clock), []
    names: dict[nn.Module, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, set()).add(name)
    for module in names:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        level = level_of(names[module])
        if level is not None and any(module is other for other in apart):
            level = "exact"
        if isinstance(module, nn.TransformerEncoder):
            level = None  # it does nothing but call its layers, and looks for modes before it goes their fast path
        stops.append(watch_calls(module, Part(session, level)))

    def free(module: nn.Module) -> bool:
        return level_of(names[module]) == "rounded" and not any(module is other for other in whole)

    return LeanHandle(stops, split_chains(model, parts, free), model, Part(session, level_of(names[model])))


def _levels(model: nn.Module, lean: Lean) -> Callable[[set[str]], Level]:
    """Make a function that returns the level of a module, given its names."""
    if not isinstance(lean, Mapping):
        return lambda names: _LEVELS[lean]
    known = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in lean:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(f"lean={pattern!r}: matches no module of {type(model).__name__}")

    def level(names: set[str]) -> Level:
        while True:
            found = [value for pattern, value in lean.items() if any(fnmatchcase(name, pattern) for name in names)]
            if found:
                return _LEVELS[found[-1]]
            if names == {""}:
                return "rounded"
            names = {name.rpartition(".")[0] for name in names if name}

    return level
