"""Frozen dataclasses as text and back: what an operator of PyTorch can be told of an estimator or a layer."""

from ast import literal_eval
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

_CLASSES: dict[str, Any] = {}


def register(made: type) -> None:
    """Let a dataclass be read back from text; of two of the same name the later one counts."""
    _CLASSES[_path(made)] = made
    from_text.cache_clear()


def to_text(value: Any) -> str:
    """A frozen dataclass as text that says all of it: class and fields, dataclasses within included.

    Equal values give equal texts in any process, and ``torch.compile`` can trace this function.

    Example:
        >>> from randbp import Spatial
        >>> to_text(Spatial(keep=0.25))
        "('randbp.estimators.spatial.Spatial', {'keep': 0.25, 'per_example': True, 'center': True})"
    """
    parts = []
    for field in fields(value):
        if field.init:
            part = getattr(value, field.name)
            parts.append(f"{field.name!r}: " + (to_text(part) if is_dataclass(part) else _literal(part)))
    return f"({_path(type(value))!r}, {{{', '.join(parts)}}})"


@lru_cache(maxsize=1024)
def from_text(text: str) -> Any:
    """Inverse of :func:`to_text` for registered classes.

    Raises:
        ValueError: If a field's value is not a number, string, tuple or the like.

    Example:
        >>> from randbp import Batch, Rounding
        >>> from_text(to_text(Rounding(bits=4, estimator=Batch(keep=0.5))))
        Rounding(bits=4, estimator=Batch(keep=0.5, bernoulli=False), block=256)
    """
    try:
        return _made(literal_eval(text))
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{text}: torch.compile takes estimators whose fields are numbers, strings, tuples or estimators ({error})"
        ) from error


def _made(tree: Any) -> Any:
    path, values = tree
    known = {name: _made(value) if _is_nested(value) else value for name, value in values.items()}
    return _CLASSES[path](**known)


def _is_nested(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] in _CLASSES and isinstance(value[1], dict)


def _literal(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else repr(value)


def _path(made: type) -> str:
    return f"{made.__module__}.{made.__qualname__}"
