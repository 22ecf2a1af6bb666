"""Arguments of a call."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


def mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """A structure of tuples, lists and dictionaries with all its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(change, each) for each in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(change, each) for each in value)
    return {key: mapped(change, each) for key, each in value.items()} if isinstance(value, dict) else value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of such a structure."""
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


@dataclass(frozen=True)
class Sample:
    """Arguments of a call; ``finish`` makes what is differentiated of its result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Any], Any] = lambda result: result

    def changed(self, change: Callable[[Tensor], Any]) -> "Sample":
        """The same with other tensors."""
        return replace(self, args=mapped(change, self.args), kwargs=mapped(change, self.kwargs))
