"""Values of a file together with their places in it, so that an error about one is one line."""

import difflib
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UsageError

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True)
class Setting:
    """A value and its place in a file.

    Example:
        >>> Setting("a.yaml", "run_cap", "3").integer(least=1)
        Traceback (most recent call last):
        randbp.cli.errors.UsageError: a.yaml: run_cap='3': expected an integer >= 1 (write 3, without quotes)
    """

    file: str
    key: str  # the keys that lead to the value, joined by dots; empty for the whole content
    value: Any

    def __getitem__(self, key: str | int) -> "Setting":
        """The setting at a key of a mapping, or at an index of a list."""
        return Setting(self.file, self._place(key), self.value[key])

    def wrong(self, expected: str) -> UsageError:
        """Make the error about this value."""
        place = f"{self.key}={_short.repr(self.value)}: " if self.key else ""
        return UsageError(f"{self.file}: {place}expected {expected}")

    def missing(self, key: str, expected: str) -> UsageError:
        """Make the error about a key that a mapping lacks."""
        return UsageError(f"{self.file}: {self._place(key)}: missing, expected {expected}")

    def of_kind(self, kinds: type | tuple[type, ...], expected: str) -> Any:
        """The value, if it is of one of some types; true and false do not count as integers."""
        if not isinstance(self.value, kinds) or (isinstance(self.value, bool) and kinds is not bool):
            raise self.wrong(expected)
        return self.value

    def text(self) -> str:
        """The value, if it is text and not empty."""
        if not isinstance(self.value, str):
            quotes = f" (write '{self.value}' in quotes)" if isinstance(self.value, int | float) else ""
            raise self.wrong(f"text{quotes}")
        if not self.value.strip():
            raise self.wrong("text that is not empty")
        return self.value

    def one_of(self, *allowed: str) -> Any:
        """The value, if it is one of some words."""
        if self.value not in allowed:
            raise self.wrong(" or ".join(map(repr, allowed)) + _nearest(self.value, allowed))
        return self.value

    def number(self, least: float = -math.inf, above: float = -math.inf, kind: str = "a number") -> float:
        """The value, if it is a finite number within bounds."""
        bound = f" >= {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
        hint = _as_number(self.value) if isinstance(self.value, str) else ""
        value: float = self.of_kind(int if kind == "an integer" else (int, float), f"{kind}{bound}{hint}")
        if not math.isfinite(value) or value < least or value <= above:
            raise self.wrong(f"{kind}{bound}")
        return value

    def integer(self, least: float = -math.inf) -> int:
        """The value, if it is an integer within bounds."""
        return int(self.number(least, kind="an integer"))

    def mapping(self, expected: str) -> "Setting":
        """This setting, if its value is a mapping with something in it."""
        if not self.value or not isinstance(self.value, dict):
            raise self.wrong(expected)
        return self

    def items(self, expected: str, filled: bool = False) -> "Iterator[Setting]":
        """The settings of a list."""
        if not isinstance(self.value, list) or (filled and not self.value):
            raise self.wrong(expected)
        return (self[number] for number in range(len(self.value)))

    def only(self, *allowed: str) -> None:
        """Refuse keys of a mapping other than these."""
        for key in self.value:
            if key not in allowed:
                known = _nearest(key, allowed) or f", expected one of {', '.join(allowed)}"
                raise UsageError(f"{self.file}: {self._place(key)}: no such key{known}")

    def fields(self, expected: str, checks: "Mapping[str, Check]", **required: str) -> dict[str, Any]:
        """The values of a mapping, each checked by the function for its key, which returns it or raises.

        The ``required`` keys, which must be there, come with what is expected of them.
        """
        self.mapping(expected).only(*checks)
        for key, what in required.items():
            if key not in self.value:
                raise self.missing(key, what)
        return {key: check(self[key]) for key, check in checks.items() if key in self.value}

    def _place(self, key: str | int) -> str:
        return f"{self.key}[{key}]" if isinstance(key, int) else f"{self.key}.{key}" if self.key else key


Check = Callable[[Setting], Any]


def _nearest(word: Any, allowed: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(word), allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _as_number(text: str) -> str:
    """The spelling that makes YAML read a text as the number that it looks like."""
    try:
        finite = math.isfinite(float(text))
    except ValueError:
        return ""
    mantissa, e, exponent = text.strip().lower().partition("e")
    if not e or not finite:
        return f" (write {text.strip()}, without quotes)" if finite else ""
    # YAML 1.1 asks for a point in the mantissa and a sign in the exponent.
    point = mantissa if "." in mantissa else f"{mantissa}.0"
    return f" (write {point}e{exponent if exponent[0] in '+-' else f'+{exponent}'})"
