"""Suggestions in the errors of options: what was nearly typed."""

import importlib
import pkgutil
import re
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from types import ModuleType
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._typehints import get_all_subclass_paths

from randbp.text.near_words import near_word, nearest

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")

_OPTION = re.compile(r"^no option '?(?:--)?([^'=\s]+)")
_ARGUMENT = re.compile(r" \((\S+)\): no option '([^']+)'")
_MISSING = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_MODULE = re.compile(r"No module named '([^']+)'")
_CLASS = re.compile(r"^([\w.]+?)\+?: no class '([^']+)'")
_VALUE = re.compile(r": expected (.+), got (\S+)$")


def suggest(message: str, parser: ArgumentParser) -> str:
    """Add to an error of the options what was meant: an option, an argument of a class, a class, a module, a value."""
    ways: tuple[tuple[re.Pattern[str], Callable[..., str]], ...] = (
        (_ARGUMENT, lambda owner, name: nearest(name, [*arguments(owner), *CLASS_KEYS])),
        (_OPTION, lambda name: _question(near_option(name, options_of(parser)))),
        (_MISSING, lambda module, name: nearest(name, _members(module))),
        (_MODULE, lambda name: nearest(name.rpartition(".")[2], _modules(name.rpartition(".")[0]))),
        (_CLASS, lambda key, name: nearest(name.rpartition(".")[2], _classes(parser, key))),
        (_VALUE, lambda allowed, value: nearest(value, re.split(", | or ", allowed))),
    )
    for pattern, meant in ways:
        if (found := pattern.search(message)) is not None:
            where = len(message) if pattern in (_OPTION, _VALUE) else found.end()
            return f"{message[:where]}{meant(*found.groups())}{message[where:]}"
    return message


def options_of(parser: ArgumentParser) -> set[str]:
    """The names of a parser's options, with dots."""
    return {action.dest for action in parser._actions}


def near_option(name: str, known: Collection[str]) -> str:
    """The option that is nearest to a name with dots, part by part; empty if none is near.

    Example:
        >>> known = ["name", "model", "trainer.max_epochs", "trainer.devices"]
        >>> [near_option(name, known) for name in ("trainr.max_epoch", "modle.lr", "max_epochs", "xyz")]
        ['trainer.max_epochs', 'model.lr', 'trainer.max_epochs', '']
    """
    before = ""
    parts = name.split(".")
    for number, part in enumerate(parts):
        inner = {it.removeprefix(before).partition(".")[0] for it in known if it.startswith(before)}
        if not inner:  # of a class, which is not known here
            return before + ".".join(parts[number:])
        if not (near := part if part in inner else near_word(part, inner)):
            break
        before += f"{near}."
    else:
        return before.removesuffix(".")
    endings = {it.rpartition(".")[2]: it for it in known}
    return endings.get(near_word(parts[-1], endings, 0.8), "")


def arguments(path: str) -> list[str]:
    """Names of the arguments of a class with this path, those that it passes on included; none if it is unknown."""
    with suppress(Exception):  # whatever importing a module may raise, which is then told by who needs the class
        module, _, name = path.rpartition(".")
        return [it.name for it in get_signature_parameters(getattr(importlib.import_module(module), name), None)]
    return []


def check_class_keys(content: Any, where: str = "") -> str | None:
    """What is wrong with the keys of a mapping that names a class, or of one within it; ``None`` if nothing is."""
    if isinstance(content, list):
        inner = [(f"{where}[{number}]", it) for number, it in enumerate(content)]
    elif isinstance(content, dict):
        inner = [(f"{where}.{key}" if where else str(key), it) for key, it in content.items()]
        if (fault := _wrong_key(content)) is not None:
            return f"{where}{fault}"
    else:
        return None
    return next(filter(None, (check_class_keys(it, place) for place, it in inner)), None)


def _wrong_key(content: dict[Any, Any]) -> str | None:
    """A key that is nearly one of those that a class with arguments has, or nearly one of its arguments."""
    if not any(key in content for key in CLASS_KEYS[:2]):
        return None
    for key in content:
        if key not in CLASS_KEYS and (near := nearest(key, CLASS_KEYS)):
            return f".{key}: no such key{near}, expected {', '.join(CLASS_KEYS)}"
    path, given = content.get("class_path"), content.get("init_args")
    known = (arguments(path) or arguments(f"randbp.{path}")) if isinstance(path, str) else []
    for key in given if isinstance(given, dict) else {}:
        if key not in known and "." not in str(key) and (near := nearest(key, known)):
            return f" ({path}): no option {key!r}{near}"
    return None


def _question(name: str) -> str:
    return f" (did you mean {name}?)" if name else ""


def _members(path: str) -> Iterable[str]:
    module = importlib.import_module(path)
    return {*filter(lambda name: not name.startswith("_"), dir(module)), *_submodules(module)}


def _modules(path: str) -> Iterable[str]:
    """The modules of a package, or all top-level ones."""
    return _submodules(importlib.import_module(path)) if path else {it.name for it in pkgutil.iter_modules()}


def _submodules(module: ModuleType) -> set[str]:
    return {it.name for it in pkgutil.iter_modules(getattr(module, "__path__", []))}


def _classes(parser: ArgumentParser, key: str) -> Iterable[str]:
    """Names of the known classes of an option."""
    kinds = (getattr(action, "_typehint", None) for action in parser._actions if action.dest == key)
    kind = next(filter(None, kinds), None)
    return [] if kind is None else {path.rpartition(".")[2] for path in get_all_subclass_paths(kind)}
