"""The runs of a sweep, in the order in which they are carried out."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from randbp.callbacks.files import write_json

from .errors import UsageError
from .run_folder import check_name
from .search import Draw, Trial, propose, values_at
from .sweep_command import command_line
from .sweep_file import MOST_RUNS, Values, read_sweep
from .sweep_run import SweepRun

TRIALS = "trials.json"
"""What a random or Bayesian sweep has drawn, in the sweep's folder."""
LONGEST = 120
"""Length up to which a run's name is spelt out [bytes]."""


class Plan:
    """The runs of a sweep file, each determined when its turn comes: a search proposes it from the results so far.

    They are in the folder ``name`` below the root; ``extra`` options go to each. Of a grid ``count`` is the largest.
    """

    def __init__(
        self,
        file: Path,
        name: str | None = None,
        root: Path = Path("runs"),
        count: int | None = None,
        seed: int = 0,
        extra: Sequence[str] = (),
    ) -> None:
        self.sweep = read_sweep(file)
        self.name = self.sweep.name if name is None else name
        check_name(f"{file}: name" if name is None else "--name", self.name, several=True)
        self.root, self.seed, self.extra, self.folder = root, seed, extra, root / self.name
        self.runs: dict[str, SweepRun] = {}  # those determined so far, by version; what was drawn twice is there once
        self._draws: list[Draw] = []
        self._versions: list[str] = []
        count = self.sweep.run_cap if count is None else count
        if self.sweep.method == "grid":
            self._grid = list(islice(self.sweep.grid(), count))
            count = len(self._grid)
        elif count is None:
            what = f"expected the number of runs of method={self.sweep.method} (or --count)"
            raise UsageError(f"{file}: run_cap: missing, {what}")
        elif count > MOST_RUNS:
            raise UsageError(f"{file}: run_cap={count}: expected at most {MOST_RUNS} runs (--count makes them fewer)")
        self.count = count

    def known(self) -> Iterator[SweepRun]:
        """Yield further runs, as far as they do not depend on the results of others."""
        return self._until(min(self.count, len(self._draws)) if self.sweep.method == "bayes" else self.count)

    def __iter__(self) -> Iterator[SweepRun]:
        """Yield the runs that have not been determined yet."""
        return self._until(self.count)

    def take_up(self) -> None:
        """Reuse what an earlier sweep in this folder has drawn, if it has drawn from this file's parameters."""
        path = self.folder / TRIALS
        drawn = {name for name, it in self.sweep.drawn.items() if it.distribution != "constant"}
        try:
            self._draws = json.loads(path.read_text(encoding="utf-8"))["draws"] if path.exists() else []
            if any(draw.keys() != drawn or not values_at(self.sweep, draw) for draw in self._draws):
                raise KeyError(TRIALS)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: not of this sweep file's parameters (--name starts another sweep)") from error

    def _until(self, number: int) -> Iterator[SweepRun]:
        while len(self._versions) < number:
            run = self._run(self._next(len(self._versions)))
            self._versions.append(run.version)
            if self.runs.setdefault(run.version, run) is run:
                yield run

    def _next(self, number: int) -> Values:
        if self.sweep.method == "grid":
            return self._grid[number]
        if number == len(self._draws):
            self._draws.append(propose(self.sweep, self._trials(number), self.seed))
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
        place = [f"--trainer.default_root_dir={self.root}", f"--name={self.name}", f"--version={version}"]
        return SweepRun(version, self.folder / version, log, (*words, *self.extra, *place), json.dumps(nested))


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
    endings = (".".join(parts[-length:]) for length in range(1, len(parts)))
    others = [f".{other}" for other in keys if other != key]
    return next((end for end in endings if not any(other.endswith(f".{end}") for other in others)), key)
