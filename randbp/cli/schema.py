"""Mappings of a file as strict pydantic models, and their errors as one line of key, value and what is allowed."""

import math
import re
import reprlib
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from randbp.text.near_words import nearest

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def allowed(what: str) -> WrapValidator:
    """Leave a value as it is if it is of a type, and say otherwise what is expected."""

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            validate(value)
        except ValidationError:
            quoted = isinstance(value, int | float | date) and what.startswith("text")
            hint = f" (write '{value}' in quotes)" if quoted else _as_number(value) if isinstance(value, str) else ""
            raise ValueError(f"expected {what}{hint}") from None
        return value

    return WrapValidator(check)


Number = Annotated[float, Field(allow_inf_nan=False), allowed("a number")]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0), allowed("a number above 0")]
NotNegative = Annotated[float, Field(allow_inf_nan=False, ge=0), allowed("a number >= 0")]
Count = Annotated[int, Field(ge=1), allowed("an integer >= 1")]
Text = Annotated[str, Field(pattern=r"\S"), allowed("text that is not empty")]
Plain = Annotated[JsonValue, allowed("text, numbers, lists or mappings of them")]
YesNo = Annotated[bool, allowed("true or false")]


class Strict(BaseModel):
    """A mapping with these keys and no others, whose values are not converted.

    Example:
        >>> class Limits(Strict):
        ...     run_cap: Count
        >>> for content in ({"run_cap": "3"}, {"runcap": 3}):
        ...     try:
        ...         _ = Limits.model_validate(content)
        ...     except ValidationError as error:
        ...         print(what_is_wrong(error))
        run_cap='3': expected an integer >= 1 (write 3, without quotes)
        runcap: no such key (did you mean run_cap?), expected one of run_cap
    """

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: Any) -> Any:
        fields = cls.model_fields
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping with {', '.join(fields)}")
        for key in content:
            if key not in fields:
                raise at_key(key, f": no such key{nearest(key, fields)}, expected one of {', '.join(fields)}")
        for name, field in fields.items():
            if field.is_required() and name not in content:
                raise at_key(name, f": missing, expected {field.description or 'it'}")
        return content


def at_key(key: str, message: str) -> PydanticCustomError:
    """Make the error about a key of the mapping that is being checked."""
    return PydanticCustomError("at_key", "{message}", {"message": f"{key}{message}"})


def what_is_wrong(error: ValidationError) -> str:
    """The first error as key, value and what is allowed."""
    first = error.errors(include_url=False)[0]
    value, kind, text = first["input"], first["type"], first["msg"]
    parts = [part for part in first["loc"] if part != "[key]"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
    if kind == "at_key":
        return f"{place}.{text}" if place else text
    text = re.sub(r"^Value error, |(^\w+ should (be|have))(?= )", lambda found: "expected" * bool(found[1]), text)
    if kind == "literal_error":
        text += nearest(value, re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    return f"{place}={_short.repr(value)}: {text}" if place else text


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
