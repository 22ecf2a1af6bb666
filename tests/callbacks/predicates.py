"""Predicates that differ a little. Importing them imports no Lightning: other processes are quick to name them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

Predicate = Callable[[str, nn.Module], bool]


def starts(prefix: Any) -> Predicate:
    def predicate(name: str, module: nn.Module) -> bool:
        return name.startswith(prefix)

    return predicate


def is_one_of(names: set[str], name: str, module: nn.Module) -> bool:
    return name in names


def predicates(predicate_name: Callable[..., str]) -> list[Predicate]:
    late = lambda name, module: name == after  # noqa: E731
    assert predicate_name(late)  # what it reads is not there yet
    after = "a"
    return [
        lambda name, module: name == "a",
        lambda name, module: name == "b",
        lambda name, module: isinstance(module, nn.Linear),
        lambda name, module: isinstance(module, nn.Conv2d),
        lambda name, module: name in {"a", "b", "c"},
        lambda name, module: name in {"a", "b", "d"},
        lambda name, module, extra="a": name == extra,
        lambda name, module, extra="b": name == extra,
        late,
        starts("a"),
        starts("b"),
        starts(("a", "b")),
        partial(is_one_of, {"a", "b", "c"}),
        partial(is_one_of, {"a", "b", "d"}),
    ]
