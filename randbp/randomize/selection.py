"""Which layers of a model a name, glob or predicate means."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn


def select(
    model: nn.Module,
    layers: str | Iterable[str] | Callable[[str, nn.Module], bool] | None,
    eligible: Callable[[nn.Module], bool],
) -> dict[str, nn.Module]:
    """The eligible modules that ``layers`` means, by name, in the order of ``model.named_modules()``.

    Raises:
        ValueError: If a pattern, or the predicate, matches none.
    """
    candidates = {name: module for name, module in model.named_modules() if eligible(module)}
    if layers is None:
        if not candidates:
            raise ValueError(f"model: {type(model).__name__} has no nn.Conv1d, nn.Conv2d or nn.Conv3d to randomise")
        return candidates
    if isinstance(layers, str):
        layers = [layers]
    if callable(layers):
        chosen = {name: module for name, module in candidates.items() if layers(name, module)}
        if not chosen:
            raise ValueError(f"layers={layers!r}: true for none of the convolutions {_listed(candidates)}")
        return chosen
    patterns = list(layers)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"layers={pattern!r}: expected names, globs or a predicate (name, module) -> bool")
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"layers={pattern!r}: matches none of the convolutions {_listed(candidates)}")
    if not patterns:
        raise ValueError("layers=[]: expected at least one name or glob, or None for all convolutions")
    return {
        name: module for name, module in candidates.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _listed(candidates: dict[str, nn.Module]) -> str:
    names = [repr(name) for name in candidates]
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "") or "(there are none)"
