"""The ``parameters`` of a sweep file: their distributions, with checks of the settings."""

import math
import re
from collections.abc import Iterator
from typing import Any

from .distributions import EDGE, LISTED, NUMERIC, WEIGHTED, Parameter
from .errors import UsageError
from .setting import Setting

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
MOST = 2**53
"""The largest integer that is drawn: up to there each is a float, too."""

_FORMS = "value, values, min and max, a distribution, or parameters"


def read_parameters(it: Setting) -> dict[str, Parameter]:
    """Read the parameters by name; the name of a nested one is its keys joined by dots."""
    found: dict[str, Parameter] = {}
    for parameter in _below(it, ()):
        if parameter.name in found:
            raise UsageError(f"{it.file}: {it.key}: {parameter.name} is there twice, nested and with a dot")
        found[parameter.name] = parameter
    return found


def _below(it: Setting, outer: tuple[str, ...]) -> Iterator[Parameter]:
    for key in it.mapping("at least one parameter").value:
        if not _NAME.match(key):
            raise UsageError(
                f"{it.file}: {it.key}.{key}: expected letters, digits, '_', '.', '-' in a parameter's name"
            )
        one = it[key].mapping(_FORMS)
        if "parameters" in one.value:
            one.only("parameters")
            yield from _below(one["parameters"], (*outer, key))
        else:
            name = _distribution(one)
            settings = _listed(one, name) if name in LISTED else _numbers(one, name)
            yield Parameter((*outer, key), name, settings)


def _distribution(it: Setting) -> str:
    """The distribution that a parameter names, or the one that W&B infers from its other keys."""
    given = it.value
    if "distribution" in given:
        it["distribution"].of_kind(str, "the name of a distribution")
        name: str = it["distribution"].one_of(*LISTED, *NUMERIC)
        return WEIGHTED if name == "categorical" and "probabilities" in given else name
    for key, name in (("probabilities", WEIGHTED), ("value", "constant"), ("values", "categorical")):
        if key in given:
            return name
    if "min" in given or "max" in given:
        ends = [given.get("min"), given.get("max")]
        return "int_uniform" if all(isinstance(end, int) for end in ends) else "uniform"
    it.only(
        "value", "values", "probabilities", "min", "max", "distribution", "parameters", "mu", "sigma", "q", "a", "b"
    )
    raise it.wrong(_FORMS)


def _listed(it: Setting, name: str) -> dict[str, Any]:
    """What a parameter lists."""
    it.only("distribution", *LISTED[name])
    for key in LISTED[name]:
        if key not in it.value:
            raise it.missing(key, f"it beside distribution={name}")
    for value in [it["value"]] if name == "constant" else it["values"].items("a list of values", filled=True):
        _check_plain(value)
    if name == WEIGHTED:
        _check_probabilities(it)
    return {key: it.value[key] for key in LISTED[name]}


def _numbers(it: Setting, name: str) -> dict[str, Any]:
    """The settings of a distribution of numbers, defaults included."""
    distribution = NUMERIC[name]
    it.only("distribution", *distribution.settings)
    settings: dict[str, float] = {}
    for key, default in distribution.settings.items():
        setting = _number(it[key], key, name) if key in it.value else default
        if setting is None:
            raise it.missing(key, f"it beside distribution={name}")
        settings[key] = setting
    if "min" in settings and settings["min"] > settings["max"]:
        raise it["min"].wrong(f"at most max={settings['max']!r}")
    if distribution.positive and settings["min"] <= 0:
        raise it["min"].wrong(f"a number above 0 for {name}")
    _check_size(it, Parameter((), name, settings))
    return settings


def _number(it: Setting, key: str, distribution: str) -> float:
    if distribution == "int_uniform":
        if abs(it.integer()) > MOST:
            raise it.wrong(f"an integer from -{MOST} to {MOST}")
        return it.integer()
    if key in ("q", "a", "b"):
        return it.number(above=0)
    return it.number(least=0) if key == "sigma" else it.number()


def _check_plain(it: Setting) -> None:
    """Check that JSON can express a value."""
    if isinstance(it.value, list | dict):
        for key in it.value if isinstance(it.value, dict) else range(len(it.value)):
            _check_plain(it[key])
    elif not isinstance(it.value, str | int | float | None):
        raise it.wrong(f"a number, text, a list or a mapping (write '{it.value}' in quotes)")


def _check_probabilities(it: Setting) -> None:
    values, weights = it["values"], it["probabilities"]
    numbers = [weight.number(least=0) for weight in weights.items("a list of numbers", filled=True)]
    if len(numbers) != len(values.value):
        raise weights.wrong(f"{len(values.value)} numbers, one for each of the values")
    if abs(math.fsum(numbers) - 1) > 1e-6:
        raise weights.wrong(f"numbers whose sum is 1, not {math.fsum(numbers):.6g}")


def _check_size(it: Setting, parameter: Parameter) -> None:
    """Check that all draws are finite."""
    try:
        ends = [parameter.quantile(p) for p in (EDGE, 1 - EDGE)]
    except OverflowError:
        ends = [math.inf]
    if not all(math.isfinite(end) for end in ends):
        name, values = parameter.distribution, f"{parameter.distribution}_values"
        hint = f" (its min and max are exponents; {values} takes the values themselves)" * (values in NUMERIC)
        raise it.wrong(f"{name} with draws that a float can hold{hint}")
