"""Frozen dataclasses as text and back, so that operators of PyTorch can take an estimator or a layer."""

from ast import literal_eval
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

_CLASSES: dict[str, Any] = {}


def register(made: type) -> None:
    """Register a dataclass to be read back from text; of two with the same name the later one counts."""
    _CLASSES[_path(made)] = made
    from_text.cache_clear()


def to_text(value: Any) -> str:
    """Write a frozen dataclass as text: its class and fields, including nested dataclasses.

    Equal values give equal texts in any process, and ``torch.compile`` can trace this function.

    Example:
        >>> from randbp import Batch
        >>> to_text(Batch(keep=0.25))
        "('randbp.estimators.batch.Batch', {'keep': ['0x1.0000000000000p-2'], 'bernoulli': False, 'center': False})"
    """
    parts = []
    for field in fields(value):
        if field.init:
            part = getattr(value, field.name)
            parts.append(f"{field.name!r}: " + (to_text(part) if is_dataclass(part) else _literal(part)))
    return f"({_path(type(value))!r}, {{{', '.join(parts)}}})"


@lru_cache(maxsize=1024)
def from_text(text: str) -> Any:
    """Undo :func:`to_text`, for registered classes.

    Raises:
        ValueError: If a field's value is not a number, string, tuple or the like.

    Example:
        >>> from randbp import Batch, Rounding
        >>> from_text(to_text(Rounding(bits=4, estimator=Batch(keep=0.5))))
        Rounding(bits=4, estimator=Batch(keep=0.5, bernoulli=False, center=False), block=256)
    """
    try:
        return _made(literal_eval(text))
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{text}: torch.compile takes estimators whose fields are numbers, strings, tuples or estimators ({error})"
        ) from error


def _made(tree: Any) -> Any:
    path, values = tree
    return _CLASSES[path](**{name: _value(part) for name, part in values.items()})


def _value(part: Any) -> Any:
    if isinstance(part, list):
        return float.fromhex(part[0])
    nested = isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], dict)
    return _made(part) if nested else part


def _literal(value: Any) -> str:
    # A float becomes a list of its digits: the compiler, which may see it as a variable, knows its value only this way.
    return repr([value.hex()]) if isinstance(value, float) else repr(value)


def _path(made: type) -> str:
    return f"{made.__module__}.{made.__qualname__}"
