"""Sweep files in W&B's format: their schema, and the sweep that they describe."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from .distributions import WEIGHTED, Parameter
from .errors import UsageError
from .metric import Hyperband, Metric
from .parameters import read_parameters
from .setting import Check, Setting
from .sweep_command import check_command
from .yaml_file import read_yaml

Values = dict[str, Any]
METHODS = ("grid", "random", "bayes")
IMPUTED = ("latest", "best", "worst")
MOST_RUNS = 100_000


@dataclass(frozen=True)
class SweepFile:
    """A sweep, as described by its file.

    Example:
        >>> keep = Parameter(("keep",), "categorical", {"values": [1, 0.5]})
        >>> list(SweepFile("demo", "grid", {"keep": keep}).grid())
        [{'keep': 1}, {'keep': 0.5}]
    """

    name: str  # the file's name, else the name of the file
    method: str  # one of METHODS
    parameters: Mapping[str, Parameter]  # by their names, in the file's order
    command: tuple[str, ...] = ()  # with macros such as ${args}; empty for randbp fit ${args}
    program: str = ""  # the value of ${program}
    run_cap: int | None = None  # the largest number of runs, None for all
    metric: Metric | None = None  # to optimise
    early_terminate: Hyperband | None = None  # when runs that fall behind are stopped

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that differ between runs."""
        return tuple(name for name, it in self.parameters.items() if it.size > 1)

    def grid(self) -> Iterator[Values]:
        """Every combination of the parameters' values, the last parameter's changing fastest."""
        for values in product(*(it.choices for it in self.parameters.values())):
            yield dict(zip(self.parameters, values, strict=True))

    def nested(self, values: Values) -> Values:
        """Values as W&B passes them to a program: nested parameters form one mapping under their outermost key.

        Example:
            >>> lr = Parameter(("optimizer", "lr"), "constant", {"value": 0.1})
            >>> SweepFile("", "grid", {"optimizer.lr": lr}).nested({"optimizer.lr": 0.1})
            {'optimizer': {'lr': 0.1}}
        """
        result: Values = {}
        for name, value in values.items():
            *outer, last = self.parameters[name].path if name in self.parameters else (name,)
            place = result
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = value
        return result


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        UsageError: If the file cannot be read or says something that W&B's format does not have, in one line with file
            and key.
    """
    top = Setting(str(path), "", read_yaml(path)).mapping("a W&B sweep file with method and parameters")
    for key in ("job", "image_uri", "scheduler", "metrics"):
        if key in top.value:
            raise UsageError(f"{path}: {key}: W&B's servers are needed for it, expected a sweep without it")
    required = {"method": f"one of {', '.join(METHODS)}", "parameters": "at least one parameter"}
    found = top.fields("a sweep", _KEYS, **required)
    known = {field.name for field in fields(SweepFile)}
    sweep = SweepFile(**{"name": path.stem} | {key: value for key, value in found.items() if key in known})
    for what, needed in (("method=bayes", sweep.method == "bayes"), ("early_terminate", sweep.early_terminate)):
        if needed and sweep.metric is None:
            raise UsageError(f"{path}: metric: missing, expected it beside {what}")
    if sweep.method == "grid":
        _check_grid(path, sweep.parameters)
    check_command(str(path), sweep.command, sweep.program)
    return sweep


def _check_grid(path: Path, parameters: Mapping[str, Parameter]) -> None:
    runs = 1.0
    for it in parameters.values():
        if it.size == math.inf or it.distribution == WEIGHTED:
            place = ".parameters.".join(it.path)
            raise UsageError(
                f"{path}: parameters.{place}: {it.distribution} does not go with method=grid, "
                f"expected value, values or integers from min to max"
            )
        runs *= it.size
        if runs > MOST_RUNS:
            raise UsageError(f"{path}: parameters: a grid of {runs:.0f} runs or more, expected at most {MOST_RUNS}")


def _command(it: Setting) -> tuple[str, ...]:
    return tuple(str(word.of_kind((str, int, float), "a word")) for word in it.items("a list of words"))


def _metric(it: Setting) -> Metric:
    return Metric(**it.fields("name and goal", _METRIC_KEYS, name="a metric"))


def _hyperband(it: Setting) -> Hyperband:
    given = it.fields("type, and min_iter or max_iter and s", _HYPERBAND_KEYS, type="hyperband")
    eta = given.get("eta", 3)
    if "max_iter" in given and "s" in given:
        bands = {int(given["max_iter"] / eta**number) for number in range(1, given["s"] + 1)} - {0}
        if not bands:
            raise it.wrong(f"a max_iter of at least eta={eta}")
    elif "min_iter" in given:
        powers = (eta**number for number in range(100))
        bands = {int(given["min_iter"] * power) for power in powers if power < 1e9}
    else:
        raise it.wrong("min_iter, or max_iter and s")
    return Hyperband(tuple(sorted(bands)), eta, given.get("strict", False))


def _positive(it: Setting) -> int:
    return it.integer(least=1)


_METRIC_KEYS: dict[str, Check] = {
    "name": Setting.text,
    "goal": lambda it: it.one_of("minimize", "maximize"),
    "target": Setting.number,
    "impute": lambda it: it.one_of(*IMPUTED),
    "impute_while_running": lambda it: None if it.value in (False, "false") else it.one_of(*IMPUTED, "false"),
}
_HYPERBAND_KEYS: dict[str, Check] = {
    "type": lambda it: it.one_of("hyperband"),
    **dict.fromkeys(("min_iter", "max_iter", "s"), _positive),
    "eta": lambda it: it.number(above=1),
    "strict": lambda it: it.of_kind(bool, "true or false"),
}
_KEYS: dict[str, Check] = {
    **dict.fromkeys(("name", "description", "program", "entity", "project"), Setting.text),
    "method": lambda it: it.one_of(*METHODS),
    "command": _command,
    "run_cap": _positive,
    "metric": _metric,
    "early_terminate": _hyperband,
    "parameters": read_parameters,
    **dict.fromkeys(("apiVersion", "kind", "controller"), lambda it: it.value),
}
"""The keys that a file may have; those that only matter to W&B's own servers are read and left."""
