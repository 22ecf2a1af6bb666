"""Names for predicates over layers: the same in every process, and different for different predicates."""

from collections.abc import Callable
from functools import partial
from types import CellType, CodeType, FunctionType
from typing import Any
from zlib import crc32


def predicate_name(predicate: Callable[..., object]) -> str:
    """Name a predicate by where it is defined and, where others may share that place, by a checksum of what it does.

    These are lambdas, functions within functions and ``functools.partial``. Another Python may give another checksum.
    """
    named = predicate if hasattr(predicate, "__qualname__") else type(predicate)
    name = f"{named.__module__}.{named.__qualname__}"
    local = isinstance(predicate, partial) or "<" in name
    return f"{name}:{crc32(repr(_deeds(predicate)).encode()):08x}" if local else name


def _deeds(predicate: Any) -> Any:
    """The code and constants of a function, as plain values."""
    if isinstance(predicate, partial):
        return _deeds(predicate.func), _content(predicate.args), _content(predicate.keywords)
    if not isinstance(predicate, FunctionType):
        return _content(predicate)
    read = [cell.cell_contents for cell in predicate.__closure__ or () if cell != CellType()]  # but empty ones
    return _content((predicate.__code__, predicate.__defaults__, predicate.__kwdefaults__, read))


def _content(value: Any) -> Any:
    """The content of a value, without memory addresses and in the same order in every process."""
    if isinstance(value, str | bytes | int | float | None):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(repr, map(_content, value)))
    if isinstance(value, list | tuple):
        return [_content(item) for item in value]
    if isinstance(value, dict):
        return [(_content(key), _content(item)) for key, item in value.items()]
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, _content(value.co_consts)
    return getattr(value, "__qualname__", type(value).__qualname__)
