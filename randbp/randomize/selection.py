"""Selection of a model's layers by name, glob or predicate."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any, NamedTuple

from torch import nn

from ..layers import Layer, layer

Layers = str | Iterable[str] | Callable[[str, nn.Module], bool] | None


class Selection(NamedTuple):
    """The layers of a model that ``layers`` selects.

    Attributes:
        modules: The layers that can be estimated, by their first name, in the order of ``model.named_modules()``.
        left_exact: Why the others cannot, by name.
    """

    modules: dict[str, nn.Module]
    left_exact: dict[str, str]


def select(model: nn.Module, layers: Layers) -> Selection:
    """The layers that ``layers`` means, by name, in the order of ``model.named_modules()``.

    A module that is shared under several names is listed under its first one, and each of them selects it.

    Args:
        model: The model.
        layers: See :func:`randbp.randomize`.

    Raises:
        ValueError: If a pattern, or the predicate, matches none, or only layers that cannot be estimated.
    """
    candidates, names = _candidates(model), all_names(model)
    exact = {name: found.exact for name, (_, found) in candidates.items() if found.exact}
    layers = checked_layers(layers)
    if layers is None:
        chosen = {name for name, (_, found) in candidates.items() if found.convolution}
        if not chosen - set(exact):
            raise ValueError(_no_convolutions(model, candidates, exact))
    elif callable(layers):
        chosen = {n for n, (module, _) in candidates.items() if any(layers(each, module) for each in names[n])}
        if not chosen - set(exact):
            raise ValueError(f"layers={layers!r}: true for none of the {_but(candidates, chosen)}")
    else:
        chosen = set()
        for pattern in [layers] if isinstance(layers, str) else layers:
            matched = {name for name in candidates if matching(names[name], pattern)}
            if not matched - set(exact):
                raise ValueError(f"layers={pattern!r}: matches none of the {_but(candidates, matched)}")
            chosen |= matched
    modules = {name: module for name, (module, _) in candidates.items() if name in chosen and name not in exact}
    return Selection(modules, {name: reason for name, reason in exact.items() if name in chosen})


def everything(model: nn.Module, convolutions: bool = False) -> Selection:
    """All convolutions and linear layers of a model, or the convolutions alone; there may be none."""
    found = {name: each for name, each in _candidates(model).items() if each[1].convolution or not convolutions}
    modules = {name: module for name, (module, kind) in found.items() if not kind.exact}
    return Selection(modules, {name: kind.exact for name, (_, kind) in found.items() if kind.exact})


def _candidates(model: nn.Module) -> dict[str, tuple[nn.Module, Layer]]:
    """All layers by their first name."""
    found = {_uncompiled(name): (module, layer(module)) for name, module in model.named_modules()}
    return {name: (module, kind) for name, (module, kind) in found.items() if kind is not None}


def _no_convolutions(model: nn.Module, candidates: dict[str, tuple[nn.Module, Layer]], exact: dict[str, str]) -> str:
    """The advice on what to pass instead of ``layers=None``."""
    convolutions = {name for name, (_, found) in candidates.items() if found.convolution}
    if convolutions:
        return f"model: {type(model).__name__} has as convolutions only {_reasons(exact, convolutions)}"
    linear = [name for name in candidates if name not in exact]
    hint = f"; layers='*' means its linear layers {shortened([repr(name) for name in linear], 3)}" if linear else ""
    return f"model: {type(model).__name__} has no nn.Conv1d/2d/3d or nn.ConvTranspose1d/2d/3d to randomise{hint}"


def _but(candidates: dict[str, tuple[nn.Module, Layer]], matched: set[str]) -> str:
    """The end of an error: layers that could have been meant, and those that were but stay exact."""
    exact = {name: found.exact for name, (_, found) in candidates.items() if found.exact}
    served = _listed({name: candidate for name, candidate in candidates.items() if name not in exact})
    return f"{served}, only {_reasons(exact, matched)}" if matched else served


def _reasons(exact: dict[str, str], names: set[str]) -> str:
    """The end of an error: layers that stay exact, with reasons."""
    shown = [f"{name!r} ({reason})" for name, reason in exact.items() if name in names]
    return f"layers that stay exact: {shortened(shown, 3)}"


def all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of each module, keyed by the first one."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(_uncompiled(name))
    return {names[0]: tuple(names) for names in found.values()}


def matching(names: Iterable[str], pattern: str) -> set[str]:
    """The names that match a name or glob."""
    return {name for name in names if fnmatchcase(name, pattern)}


def checked_layers(layers: Layers) -> str | list[str] | Callable[[str, nn.Module], bool] | None:
    """Check an argument ``layers``; return it unchanged or as a list of names and globs.

    Raises:
        ValueError: If it is neither names nor globs nor a predicate of two arguments.
    """
    if layers is None or isinstance(layers, str):
        return layers
    if callable(layers):
        if not _takes_two(layers):
            raise ValueError(f"layers={layers!r}: expected a predicate of two arguments (name, module) -> bool")
        return layers
    try:
        patterns: list[Any] = list(layers)
    except TypeError:  # not several of anything
        patterns = [layers]
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
    """A name without the prefix of ``torch.compile``, so that compiling changes neither layers nor samples."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _listed(candidates: dict[str, tuple[nn.Module, Layer]]) -> str:
    """The end of an error: the layers by kind."""
    kinds: dict[str, list[str]] = {"convolutions": [], "linear layers": []}
    for name, (_, found) in candidates.items():
        kinds["convolutions" if found.convolution else "linear layers"].append(repr(name))
    listed = [f"{kind} {shortened(names)}" for kind, names in kinds.items() if names]
    return " or ".join(listed) or "convolutions or linear layers (there are none)"


def shortened(names: list[str], most: int = 8) -> str:
    """The first few of some names, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
