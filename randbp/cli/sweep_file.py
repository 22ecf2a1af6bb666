"""Sweep files in W&B's format: their schema, and the sweep that they describe."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from .distributions import Parameter
from .errors import UsageError
from .parameters import read_parameters
from .setting import Setting, missing
from .sweep_command import check_command
from .yaml_file import read_yaml

Values = dict[str, Any]
METHODS = ("grid", "random", "bayes")
IMPUTED = ("latest", "best", "worst")
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Metric:
    """The metric that a sweep optimises.

    Args:
        name: The metric, as runs log it.
        goal: Whether small or large values are good.
        target: The sweep starts no further run once one has reached this.
        impute: The value that Bayesian search assumes for a run that failed: its latest, or the best or the worst of
            all others.
        impute_while_running: The value assumed for a run that has not ended yet; ``None`` to leave it open.
    """

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None
    impute: str = "worst"
    impute_while_running: str | None = None

    def better(self, value: float, other: float) -> bool:
        """Whether a value is better than another.

        Example:
            >>> Metric("loss").better(0.1, 0.2), Metric("accuracy", "maximize").better(0.1, 0.2)
            (True, False)
        """
        return value < other if self.goal == "minimize" else value > other

    def reaches_target(self, value: float) -> bool:
        """Whether a value is at the target or better."""
        return self.target is not None and (value == self.target or self.better(value, self.target))


@dataclass(frozen=True)
class Hyperband:
    """Settings for stopping runs that fall behind.

    Args:
        bands: Numbers of times that the metric has been logged, at which a run must be among the best.
        eta: It must be among the best ``1/eta`` of all runs that came so far.
        strict: Whether its value at the band counts, instead of its best one so far.
    """

    bands: tuple[int, ...]
    eta: float = 3
    strict: bool = False


@dataclass(frozen=True)
class SweepFile:
    """A sweep, as described by its file.

    Args:
        name: The file's ``name``, else the name of the file.
        method: ``"grid"``, ``"random"`` or ``"bayes"``.
        parameters: The parameters by their names, in the file's order.
        command: The command with macros such as ``${args}``; empty for ``randbp fit ${args}``.
        program: The value of ``${program}``.
        run_cap: The largest number of runs, ``None`` for all.
        metric: The metric to optimise.
        early_terminate: When runs that fall behind are stopped.

    Example:
        >>> keep = Parameter(("keep",), "categorical", {"values": [1, 0.5]})
        >>> list(SweepFile("demo", "grid", {"keep": keep}).grid())
        [{'keep': 1}, {'keep': 0.5}]
    """

    name: str
    method: str
    parameters: Mapping[str, Parameter]
    command: tuple[str, ...] = ()
    program: str = ""
    run_cap: int | None = None
    metric: Metric | None = None
    early_terminate: Hyperband | None = None

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that differ between runs."""
        return tuple(name for name, it in self.parameters.items() if it.choices is None or len(it.choices) > 1)

    def grid(self) -> Iterator[Values]:
        """Every combination of the parameters' values, the last parameter's changing fastest."""
        for values in product(*(it.choices or [] for it in self.parameters.values())):
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
    top = Setting(str(path), "", read_yaml(path)).mapping("a W&B sweep file with method and parameters", filled=True)
    for key in ("job", "image_uri", "scheduler", "metrics"):
        if key in top.value:
            raise UsageError(f"{path}: {key}: W&B's servers are needed for it, expected a sweep without it")
    top.only(*_CHECKS)
    found = {key: check(top[key]) for key, check in _CHECKS.items() if key in top.value}
    method = found.get("method") or missing(top, "method", f"one of {', '.join(METHODS)}")
    parameters = found.get("parameters") or missing(top, "parameters", "at least one parameter")
    for key, needed in (("method=bayes", method == "bayes"), ("early_terminate", "early_terminate" in found)):
        if needed and "metric" not in found:
            raise UsageError(f"{path}: metric: missing, expected it beside {key}")
    if method == "grid":
        _check_grid(path, parameters)
    check_command(str(path), found.get("command", ()), found.get("program", ""))
    return SweepFile(
        name=found.get("name", path.stem),
        method=method,
        parameters=parameters,
        command=found.get("command", ()),
        program=found.get("program", ""),
        run_cap=found.get("run_cap"),
        metric=found.get("metric"),
        early_terminate=found.get("early_terminate"),
    )


def _check_grid(path: Path, parameters: Mapping[str, Parameter]) -> None:
    runs = 1
    for it in parameters.values():
        if it.distribution == "int_uniform":
            runs *= it.settings["max"] - it.settings["min"] + 1
        elif it.distribution == "q_uniform":
            runs *= math.floor((it.settings["max"] - it.settings["min"]) / it.settings["q"]) + 1
        elif it.distribution in ("constant", "categorical"):
            runs *= len(it.choices or ())
        else:
            place = ".parameters.".join(it.path)
            raise UsageError(
                f"{path}: parameters.{place}: {it.distribution} does not go with method=grid, "
                f"expected value, values or integers from min to max"
            )
        if runs > MOST_RUNS:
            raise UsageError(f"{path}: parameters: a grid of {runs} runs or more, expected at most {MOST_RUNS}")


def _command(it: Setting) -> tuple[str, ...]:
    return tuple(str(word.of_kind((str, int, float), "a word")) for word in it.items("a list of words"))


def _metric(it: Setting) -> Metric:
    it = it.mapping("name and goal")
    it.only("name", "goal", "target", "impute", "impute_while_running")
    given: dict[str, Any] = {"name": it["name"].text() if "name" in it.value else missing(it, "name", "a metric")}
    if "goal" in it.value:
        given["goal"] = it["goal"].one_of("minimize", "maximize")
    if "target" in it.value:
        given["target"] = it["target"].number()
    if "impute" in it.value:
        given["impute"] = it["impute"].one_of(*IMPUTED)
    if it.value.get("impute_while_running", False) not in (False, "false"):
        given["impute_while_running"] = it["impute_while_running"].one_of(*IMPUTED, "false")
    return Metric(**given)


def _hyperband(it: Setting) -> Hyperband:
    it = it.mapping("type, and min_iter or max_iter and s")
    it.only("type", "min_iter", "max_iter", "s", "eta", "strict")
    if "type" not in it.value:
        missing(it, "type", "hyperband")
    it["type"].one_of("hyperband")
    eta = it["eta"].number(above=1) if "eta" in it.value else 3
    strict = bool(it["strict"].of_kind((bool,), "true or false")) if "strict" in it.value else False
    if "max_iter" in it.value and "s" in it.value:
        most, count = it["max_iter"].integer(least=1), it["s"].integer(least=1)
        bands = sorted({int(most / eta**number) for number in range(1, count + 1)} - {0})
        if not bands:
            raise it.wrong(f"a max_iter of at least eta={eta}")
        return Hyperband(tuple(bands), eta, strict)
    if "min_iter" not in it.value:
        raise it.wrong("min_iter, or max_iter and s")
    first = it["min_iter"].integer(least=1)
    return Hyperband(
        tuple(sorted({int(first * eta**number) for number in range(100) if eta**number < 1e9})), eta, strict
    )


def _anything(it: Setting) -> Any:
    return it.value


_CHECKS: dict[str, Callable[[Setting], Any]] = {
    "name": Setting.text,
    "description": Setting.text,
    "program": Setting.text,
    "entity": Setting.text,
    "project": Setting.text,
    "method": lambda it: it.one_of(*METHODS),
    "command": _command,
    "run_cap": lambda it: it.integer(least=1),
    "metric": _metric,
    "early_terminate": _hyperband,
    "parameters": read_parameters,
    "apiVersion": _anything,
    "kind": _anything,
    "controller": _anything,
}
"""The keys that a file may have; those that only matter to W&B's own servers are read and left."""
