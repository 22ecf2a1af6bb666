"""Selection of a model's layers by name, glob or predicate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any, NamedTuple

from torch import nn

from ..layers import Layer, layer
from ..text.near_words import nearest

Layers = str | Iterable[str] | Callable[[str, nn.Module], bool] | None


class Candidate(NamedTuple):
    """A layer of a model, all its names, and what it is."""

    module: nn.Module
    names: tuple[str, ...]
    layer: Layer


@dataclass(frozen=True)
class Selection:
    """Some layers of a model, by their first name, in the order of ``model.named_modules()``."""

    layers: dict[str, Candidate]

    @classmethod
    def of(cls, model: nn.Module) -> "Selection":
        """All convolutions and linear layers of a model; there may be none.

        Example:
            >>> list(Selection.of(nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU(), nn.Linear(2, 2))).modules)
            ['0', '2']
        """
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(_uncompiled(name))
        found = ((module, tuple(given), layer(module)) for module, given in names.items())
        return cls({given[0]: Candidate(module, given, kind) for module, given, kind in found if kind is not None})

    def where(self, chosen: Callable[[Candidate], bool]) -> "Selection":
        """Those of which something is true."""
        return Selection({name: one for name, one in self.layers.items() if chosen(one)})

    def named(self, *patterns: str) -> "Selection":
        """Those of which some name matches a name or glob."""
        return self.where(lambda one: any(matching(one.names, pattern) for pattern in patterns))

    @property
    def convolutions(self) -> "Selection":
        """The convolutions among them, transposed ones included."""
        return self.where(lambda one: one.layer.convolution)

    @property
    def served(self) -> "Selection":
        """Those that can be estimated."""
        return self.where(lambda one: not one.layer.exact)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that can be estimated."""
        return {name: one.module for name, one in self.served.layers.items()}

    @property
    def left_exact(self) -> dict[str, str]:
        """Why the others cannot."""
        return {name: one.layer.exact for name, one in self.layers.items() if one.layer.exact}


def select(model: nn.Module, layers: Layers) -> Selection:
    """The layers that an argument of :func:`randbp.randomize` means; each name of a shared module selects it.

    Raises:
        ValueError: If a pattern, or the predicate, matches none, or only layers that cannot be estimated.
    """
    everything, layers = Selection.of(model), checked_layers(layers)
    if layers is None:
        if not everything.convolutions.modules:
            raise ValueError(_no_convolutions(model, everything))
        return everything.convolutions
    if callable(layers):
        predicate = layers
        found = everything.where(lambda one: any(predicate(name, one.module) for name in one.names))
        if not found.modules:
            raise ValueError(f"layers={layers!r}: true for none of the {_but(everything, found)}")
        return found
    patterns = [layers] if isinstance(layers, str) else layers
    for pattern in patterns:
        if not (found := everything.named(pattern)).modules:
            meant = nearest(pattern, everything.layers)
            raise ValueError(f"layers={pattern!r}: matches none of the {_but(everything, found)}{meant}")
    return everything.named(*patterns)


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


def _no_convolutions(model: nn.Module, everything: Selection) -> str:
    """The advice on what to pass instead of ``layers=None``."""
    if everything.convolutions.layers:
        return f"model: {type(model).__name__} has as convolutions only {_reasons(everything.convolutions)}"
    linear = list(map(repr, everything.modules))
    hint = f"; layers='*' means its linear layers {shortened(linear, 3)}" if linear else ""
    return f"model: {type(model).__name__} has no nn.Conv1d/2d/3d or nn.ConvTranspose1d/2d/3d to randomise{hint}"


def _but(everything: Selection, found: Selection) -> str:
    """The end of an error: layers that could have been meant by kind, and those that were but stay exact."""
    linear = everything.served.where(lambda one: not one.layer.convolution)
    kinds = {"convolutions": everything.served.convolutions, "linear layers": linear}
    listed = [f"{kind} {shortened(list(map(repr, some.layers)))}" for kind, some in kinds.items() if some.layers]
    served = " or ".join(listed) or "convolutions or linear layers (there are none)"
    return f"{served}, only {_reasons(found)}" if found.layers else served


def _reasons(selection: Selection) -> str:
    """The end of an error: layers that stay exact, with reasons."""
    shown = [f"{name!r} ({reason})" for name, reason in selection.left_exact.items()]
    return f"layers that stay exact: {shortened(shown, 3)}"


def shortened(names: list[str], most: int = 8) -> str:
    """The first few of some names, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
