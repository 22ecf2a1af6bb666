"""Sweep files in W&B's format: their schema, and the sweep that they describe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, model_validator

from randbp.text.near_words import nearest

from .distributions import LISTED, NUMERIC, WEIGHTED, Distribution
from .errors import UsageError
from .schema import Count, Number, Strict, Text, YesNo, allowed, at_key, what_is_wrong
from .sweep_command import check_command
from .yaml_file import read_yaml

Values = dict[str, Any]
MOST_RUNS = 100_000

_Imputed = Literal["latest", "best", "worst"]


class Metric(Strict):
    """The metric that a sweep optimises.

    Example:
        >>> Metric(name="loss", target=0.5).reaches_target(0.4)
        True
    """

    name: Text = Field(description="a metric")  # as runs log it
    goal: Literal["minimize", "maximize"] = "minimize"
    target: Number | None = None  # the sweep starts no further run once one has reached this
    impute: _Imputed = "worst"  # value of a failed run in Bayesian search: its latest, or the best or worst of others
    # The same for a run that has not ended; None to leave it open.
    impute_while_running: Annotated[
        _Imputed | None, BeforeValidator(lambda value: None if value in (False, "false") else value)
    ] = None

    @property
    def sign(self) -> int:
        """The factor that makes small values good."""
        return 1 if self.goal == "minimize" else -1

    def reaches_target(self, value: float) -> bool:
        """Whether a value is at the target or better."""
        return self.target is not None and self.sign * value <= self.sign * self.target


class Hyperband(Strict):
    """W&B's ``early_terminate``: asynchronous successive halving (L. Li et al., Hyperband, JMLR 18, 2018)."""

    type: Literal["hyperband"] = Field(description="hyperband")
    min_iter: Count | None = None
    max_iter: Count | None = None
    s: Count | None = None
    eta: Annotated[float, Field(gt=1, allow_inf_nan=False), allowed("a number above 1")] = (
        3  # a run must be among the best 1/eta of all runs that came so far
    )
    strict: YesNo = False  # whether its value at the band counts, instead of its best one so far

    @cached_property
    def bands(self) -> list[int]:
        """How often the metric has been logged when a run must be among the best."""
        if self.max_iter and self.s:
            return sorted({int(self.max_iter / self.eta**number) for number in range(1, self.s + 1)} - {0})
        powers = ((self.min_iter or 0) * self.eta**number for number in range(100))
        return sorted({int(band) for band in powers if 0 < band < 1e9})

    @model_validator(mode="after")
    def _has_bands(self) -> Hyperband:
        if not (self.min_iter or (self.max_iter and self.s)):
            raise at_key("min_iter", ": missing, expected min_iter, or max_iter and s")
        if not self.bands:
            raise at_key("max_iter", f"={self.max_iter}: expected a max_iter of at least eta={self.eta}")
        return self

    def missed(self, history: Sequence[float], histories: Iterable[Sequence[float]], metric: Metric) -> int | None:
        """The last band that a run has reached, if it is not among the best of all runs there; otherwise ``None``.

        Example:
            >>> histories, rule = [[0.9, 0.4], [0.9, 0.5], [0.9, 0.8], [0.7]], Hyperband(type="hyperband", min_iter=2)
            >>> [rule.missed(it, histories, Metric(name="loss")) for it in histories]
            [None, None, 2, None]
        """
        if not (reached := [band for band in self.bands if band <= len(history)]):
            return None
        band = reached[-1]
        rivals = sorted(metric.sign * it[band - 1] for it in histories if len(it) >= band)
        own = [metric.sign * value for value in history]
        best = own[band - 1] if self.strict else min(own)
        return band if best > rivals[int(len(rivals) / self.eta)] else None


def _of_its_kind(content: Any) -> Distribution | Nested:
    """Check a parameter by the distribution that it names, or that W&B infers from its keys."""
    given = content if isinstance(content, dict) else {}
    if "parameters" in given:
        return Nested.model_validate(given)
    kinds = {**LISTED, **NUMERIC}
    if "distribution" in given:
        name = given["distribution"]
        if name not in [*kinds]:
            raise at_key("distribution", f"={name!r}: expected one of {', '.join(kinds)}{nearest(name, kinds)}")
        name = WEIGHTED if name == "categorical" and "probabilities" in given else name
    elif found := given.keys() & {"probabilities", "value", "values"}:
        name = WEIGHTED if "probabilities" in found else "constant" if "value" in found else "categorical"
    elif "min" in given or "max" in given:
        whole = all(isinstance(given.get(end), int) for end in ("min", "max"))
        name = "int_uniform" if whole else "uniform"
    else:
        known = ("value", "values", "min", "max", "distribution", "parameters")
        meant = next(filter(None, (nearest(key, known) for key in given)), "")
        raise ValueError(f"expected value, values, min and max, a distribution, or parameters{meant}")
    return kinds[name].model_validate({**given, "distribution": name})


_Word = Annotated[str, allowed("a word"), BeforeValidator(lambda it: str(it) if type(it) in (int, float) else it)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\z"), allowed("letters, digits, '_', '.', '-'")]
Parameters = Annotated[
    dict[_Name, Annotated[Any, PlainValidator(_of_its_kind)]],
    Field(min_length=1, description="at least one parameter"),
]


class Nested(Strict):
    """Parameters that form one mapping."""

    parameters: Parameters


class SweepFile(Strict):
    """A sweep, as described by its file; what only matters to W&B's own servers is read and left.

    Example:
        >>> content = {"name": "demo", "method": "grid", "parameters": {"keep": {"values": [1, 0.5]}}}
        >>> list(SweepFile.model_validate(content).grid())
        [{'keep': 1}, {'keep': 0.5}]
    """

    name: Text  # the file's name, else the name of the file
    method: Literal["grid", "random", "bayes"] = Field(description="one of grid, random, bayes")
    parameters: Parameters
    command: list[_Word] = Field([])  # with macros such as ${args}; empty for randbp fit ${args}
    program: Text = ""  # the value of ${program}
    run_cap: Count | None = None  # the largest number of runs, None for all
    metric: Metric | None = None  # to optimise
    early_terminate: Hyperband | None = None  # when runs that fall behind are stopped
    description: Text = ""
    entity: Text = ""
    project: Text = ""
    apiVersion: Any = None
    kind: Any = None
    controller: Any = None

    @model_validator(mode="before")
    @classmethod
    def _needs_no_servers(cls, content: Any) -> Any:
        for key in ("job", "image_uri", "scheduler", "metrics"):
            if isinstance(content, dict) and key in content:
                raise at_key(key, ": W&B's servers are needed for it, expected a sweep without it")
        return content

    @model_validator(mode="after")
    def _check_together(self) -> SweepFile:
        for what, needed in (("method=bayes", self.method == "bayes"), ("early_terminate", self.early_terminate)):
            if needed and self.metric is None:
                raise at_key("metric", f": missing, expected it beside {what}")
        names = [name for name, _ in _leaves(self.parameters)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise at_key("parameters", f": {twice} is there twice, nested and with a dot")
        if self.method == "grid":
            for name, it in self.drawn.items():
                if it.size == math.inf or it.distribution == WEIGHTED:
                    allowed = "expected value, values or integers from min to max"
                    raise at_key(f"parameters.{name}", f": {it.distribution} does not go with method=grid, {allowed}")
            if (runs := math.prod(it.size for it in self.drawn.values())) > MOST_RUNS:
                raise at_key("parameters", f": a grid of {runs:.0f} runs, expected at most {MOST_RUNS}")
        check_command(self.command, self.program)
        return self

    @cached_property
    def drawn(self) -> Mapping[str, Distribution]:
        """The distributions by the parameters' names; the name of a nested one is its keys joined by dots."""
        return dict(_leaves(self.parameters))

    @property
    def varied(self) -> tuple[str, ...]:
        """The parameters that differ between runs."""
        return tuple(name for name, it in self.drawn.items() if it.size > 1)

    def grid(self) -> Iterator[Values]:
        """Every combination of the parameters' values, the last parameter's changing fastest."""
        for values in product(*(it.choices for it in self.drawn.values())):
            yield dict(zip(self.drawn, values, strict=True))

    def nested(self, values: Values) -> Values:
        """Values as W&B passes them to a program: nested parameters form one mapping under their outermost key."""
        return _nested(self.parameters, values)


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file; whatever W&B's format does not have is one line with file and key."""
    try:
        content = read_yaml(path, strict=True)
        return SweepFile.model_validate({"name": path.stem, **content} if isinstance(content, dict) else content)
    except ValidationError as error:
        raise UsageError(f"{path}: {what_is_wrong(error)}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: parameters: an alias makes them contain themselves, expected an end") from error


def _leaves(parameters: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Distribution]]:
    for key, it in parameters.items():
        if isinstance(it, Nested):
            yield from _leaves(it.parameters, f"{outer}{key}.")
        else:
            yield f"{outer}{key}", it


def _nested(parameters: Mapping[str, Any], values: Values, outer: str = "") -> Values:
    return {
        key: _nested(it.parameters, values, f"{outer}{key}.") if isinstance(it, Nested) else values[f"{outer}{key}"]
        for key, it in parameters.items()
    }
