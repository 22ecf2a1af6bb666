"""Which layers of a model a name, glob or predicate means."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from inspect import signature

from torch import nn

from .layers import is_randomized
from .modules import is_convolution, kind_of

Layers = str | Iterable[str] | Callable[[str, nn.Module], bool] | None


def select(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The layers that ``layers`` means, by name, in the order of ``model.named_modules()``.

    Raises:
        ValueError: If a pattern, or the predicate, matches none.
    """
    modules = {_uncompiled(name): module for name, module in model.named_modules()}
    candidates = {name: m for name, m in modules.items() if is_randomized(m) or kind_of(m) is not None}
    convolutions = {name: module for name, module in candidates.items() if is_convolution(module)}
    if layers is None:
        if not convolutions:
            hint = f"; layers={next(iter(candidates))!r} would name a linear layer" if candidates else ""
            raise ValueError(
                f"model: {type(model).__name__} has no nn.Conv1d/2d/3d or nn.ConvTranspose1d/2d/3d to randomise{hint}"
            )
        return convolutions
    layers = checked_layers(layers)
    if callable(layers):
        chosen = {name: module for name, module in candidates.items() if layers(name, module)}
        if not chosen:
            raise ValueError(f"layers={layers!r}: true for none of the {_listed(candidates)}")
        return chosen
    patterns = [layers] if isinstance(layers, str) else list(layers or ())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"layers={pattern!r}: matches none of the {_listed(candidates)}")
    return {
        name: module for name, module in candidates.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def checked_layers(layers: Layers) -> str | list[str] | Callable[[str, nn.Module], bool] | None:
    """What says which layers, as it is or as a list of names and globs.

    Raises:
        ValueError: If it is neither names nor globs nor a predicate of two arguments.

    Example:
        >>> checked_layers(3)
        Traceback (most recent call last):
        ValueError: layers=3: expected names, globs or a predicate (name, module) -> bool
    """
    if layers is None or isinstance(layers, str):
        return layers
    if callable(layers):
        if not _takes_two(layers):
            raise ValueError(f"layers={layers!r}: expected a predicate of two arguments (name, module) -> bool")
        return layers
    patterns = list(layers) if isinstance(layers, Iterable) else [layers]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"layers={pattern!r}: expected names, globs or a predicate (name, module) -> bool")
    if not patterns:
        raise ValueError("layers=[]: expected at least one name or glob, or None for all convolutions")
    return patterns


def _takes_two(predicate: Callable[..., object]) -> bool:
    try:
        found = signature(predicate)
    except ValueError:  # some of the functions that are written in C have none
        return True
    try:
        found.bind("", None)
    except TypeError:
        return False
    return True


def _uncompiled(name: str) -> str:
    """The name without what ``torch.compile`` adds, so that layers and samples are the same before and after it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _listed(candidates: dict[str, nn.Module]) -> str:
    """The layers by kind, for the end of a sentence."""
    kinds: dict[str, list[str]] = {"convolutions": [], "linear layers": []}
    for name, module in candidates.items():
        kinds["convolutions" if is_convolution(module) else "linear layers"].append(repr(name))
    listed = [f"{kind} {_shortened(names)}" for kind, names in kinds.items() if names]
    return " or ".join(listed) or "convolutions or linear layers (there are none)"


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
