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

    A module that is shared under several names is listed under its first one, and each of them selects it.

    Raises:
        ValueError: If a pattern, or the predicate, matches none.
    """
    candidates = {_uncompiled(n): m for n, m in model.named_modules() if is_randomized(m) or kind_of(m) is not None}
    names = all_names(model)
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
        chosen = {name: m for name, m in candidates.items() if any(layers(each, m) for each in names[name])}
        if not chosen:
            raise ValueError(f"layers={layers!r}: true for none of the {_listed(candidates)}")
        return chosen
    patterns = [layers] if isinstance(layers, str) else list(layers or ())
    for pattern in patterns:
        if not any(matching(names[name], pattern) for name in candidates):
            raise ValueError(f"layers={pattern!r}: matches none of the {_listed(candidates)}")
    return {
        name: module
        for name, module in candidates.items()
        if any(matching(names[name], pattern) for pattern in patterns)
    }


def all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each module, by its first one.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> all_names(nn.ModuleDict({"first": layer, "second": layer}))
        {'': ('',), 'first': ('first', 'second')}
    """
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(_uncompiled(name))
    return {names[0]: tuple(names) for names in found.values()}


def matching(names: Iterable[str], pattern: str) -> set[str]:
    """Those of several names that a name or glob means."""
    return {name for name in names if fnmatchcase(name, pattern)}


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
