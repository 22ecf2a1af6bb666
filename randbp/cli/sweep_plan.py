"""The runs of a sweep, in the order in which they are carried out."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from randbp.callbacks.files import write_json

from .errors import UsageError
from .search import Draw, Trial, propose, values_at
from .sweep_command import arguments_as_json, command_line
from .sweep_file import MOST_RUNS, Values, read_sweep
from .sweep_run import SweepRun

TRIALS = "trials.json"
"""What a random or Bayesian sweep has drawn, in the sweep's folder."""
LONGEST = 120
"""Length up to which a run's name is spelt out [bytes]."""


@dataclass(frozen=True)
class Options:
    """The options of ``randbp sweep``."""

    file: Path
    name: str | None = None  # folder of the runs below the root; by default the sweep's name
    root: Path = Path("runs")  # folder of all results
    jobs: int = 1  # number of runs at the same time
    count: int | None = None  # number of runs, of a grid the largest; by default what the file says
    seed: int = 0  # determines the draws
    resume: bool = False  # whether to continue an earlier sweep
    extra: tuple[str, ...] = ()  # options that go to each run


class Plan:
    """The runs of a sweep, each determined when its turn comes: a search proposes it from the results so far."""

    def __init__(self, options: Options) -> None:
        self.options, file = options, options.file
        self.sweep = read_sweep(file)
        self.text = file.read_text(encoding="utf-8")
        self.name = options.name or self.sweep.name
        self.folder = options.root / self.name
        self.runs: dict[str, SweepRun] = {}  # those made known so far, by version; what was drawn twice is there once
        self._draws: list[Draw] = []
        self._versions: list[str] = []
        count = self.sweep.run_cap if options.count is None else options.count
        if self.sweep.method == "grid":
            self._grid = list(islice(self.sweep.grid(), count))
            count = len(self._grid)
        elif count is None:
            raise UsageError(
                f"{file}: run_cap: missing, expected the number of runs of method={self.sweep.method} (or --count)"
            )
        elif count > MOST_RUNS:
            raise UsageError(f"{file}: run_cap={count}: expected at most {MOST_RUNS} runs (--count makes them fewer)")
        self.count = count

    def __iter__(self) -> Iterator[SweepRun]:
        """Yield the runs that have not been determined yet."""
        return self._until(self.count)

    def known(self) -> Iterator[SweepRun]:
        """The runs that do not depend on the results of others."""
        return self._until(min(self.count, len(self._draws)) if self.sweep.method == "bayes" else self.count)

    def example(self) -> SweepRun:
        """A run like those that will follow."""
        grid = self.sweep.method == "grid"
        return self._run(self._grid[0] if grid else values_at(self.sweep, propose(self.sweep, [])))

    def take_up(self) -> None:
        """Reuse what an earlier sweep in this folder has drawn, if it has drawn from this file's parameters."""
        path = self.folder / TRIALS
        try:
            self._draws = json.loads(path.read_text(encoding="utf-8"))["draws"]
            for draw in self._draws:
                values_at(self.sweep, draw)
                if len(draw) != sum(it.distribution != "constant" for it in self.sweep.parameters.values()):
                    raise KeyError(draw)
        except FileNotFoundError:
            return
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(f"{path}: not of this sweep file's parameters (--name starts another sweep)") from error

    def _until(self, number: int) -> Iterator[SweepRun]:
        while len(self._versions) < number:
            run = self._run(self._next())
            self._versions.append(run.version)
            if self.runs.setdefault(run.version, run) is run:
                yield run

    def _next(self) -> Values:
        number = len(self._versions)
        if self.sweep.method == "grid":
            return self._grid[number]
        if number == len(self._draws):
            self._draws.append(propose(self.sweep, self._trials(number), self.options.seed))
            if self.folder.exists():
                write_json(self.folder / TRIALS, {"format": 1, "draws": self._draws})
        return values_at(self.sweep, self._draws[number])

    def _trials(self, number: int) -> list[Trial]:
        metric = self.sweep.metric
        if self.sweep.method != "bayes" or metric is None:
            return [Trial(draw) for draw in self._draws[:number]]
        trials = []
        for draw, version in zip(self._draws[:number], self._versions, strict=True):
            run = self.runs[version]
            value, state = run.value(metric.name), run.status
            if state == "finished" and value is None:
                state = "failed"
            trials.append(Trial(draw, state, tuple(run.history(metric.name)), value))
        return trials

    def _run(self, values: Values) -> SweepRun:
        version = version_name(self.sweep.varied, values)
        nested = self.sweep.nested(values)
        log = self.folder / "logs" / f"{version}.log"
        words = command_line(self.sweep.command, self.sweep.program, nested, log.with_suffix(".json"))
        place = [f"--trainer.default_root_dir={self.options.root}", f"--name={self.name}", f"--version={version}"]
        command = (*words, *self.options.extra, *place)
        return SweepRun(version, self.folder / version, log, command, arguments_as_json(nested))


def version_name(varied: Sequence[str], values: Mapping[str, Any]) -> str:
    """Name the folder of one run by the varied parameters, each by its shortest unambiguous ending.

    Example:
        >>> varied = ("weight_vjp.keep", "input_vjp.keep", "lr")
        >>> version_name(varied, {"weight_vjp.keep": 0.5, "input_vjp.keep": 1, "lr": 1e-3})
        'weight_vjp.keep=0.5-input_vjp.keep=1-lr=0.001'
    """
    full = "-".join(f"{_short_name(key, varied)}={values[key]}" for key in varied) or "run"
    safe = re.sub(r"[^\w.=+-]+", "_", full)
    if safe == full and len(full.encode()) <= LONGEST:
        return full
    return f"{safe.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _short_name(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    for length in range(1, len(parts)):
        ending = ".".join(parts[-length:])
        if not any(f".{other}".endswith(f".{ending}") for other in keys if other != key):
            return ending
    return key
