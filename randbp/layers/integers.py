"""Conversion of integers of any type to Python's own."""

from operator import index


def as_integer(value: object) -> int | None:
    """An integer of any type, NumPy's included, as an ``int``; ``None`` for anything else, truth values included."""
    try:
        return None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def as_integers(values: object) -> tuple[int, ...] | None:
    """A sequence of integers as a tuple of ``int``; ``None`` for anything else."""
    if isinstance(values, bytes | bytearray):
        return None
    try:
        found = [as_integer(value) for value in values]  # type: ignore[attr-defined]
    except TypeError:
        return None
    return None if None in found else tuple(number for number in found if number is not None)
