"""One run of a sweep: its command, its folder and its result."""

import csv
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from randbp.callbacks.files import write_json, write_text
from randbp.callbacks.latest_epoch import find_latest

from . import child
from .errors import UsageError
from .run_folder import free_name

SUMMARY, METRICS = "summary.json", "metrics.csv"
STOPPED = "stopped"
"""Status of a run that was stopped because it fell behind the others."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    version: str  # name of its folder
    folder: Path
    log: Path  # the file for its output
    command: tuple[str, ...]
    arguments: str = "{}"  # the parameters as JSON, for commands that read them from a file

    @property
    def head(self) -> str:
        """First line of the log: the command."""
        first = "python" if self.command[0] == sys.executable else self.command[0]
        return f"$ {shlex.join((first, *self.command[1:]))}"

    def summary(self) -> dict[str, Any]:
        """The run's summary, empty while there is none."""
        with suppress(OSError, ValueError, TypeError):
            return dict(json.loads((self.folder / SUMMARY).read_text(encoding="utf-8")))
        return {}

    @property
    def status(self) -> Literal["open", "finished", "stopped", "failed"]:
        """The run's status in its summary; ``open`` while it may still finish."""
        found = self.summary().get("status")
        return found if found in ("finished", STOPPED, "failed") else "open"

    @property
    def epochs(self) -> tuple[int, int]:
        """Completed epochs and their total; zero where that is not known."""
        done, total = (_number(self._part("progress").get(key)) or 0 for key in ("epochs", "max_epochs"))
        return int(done), max(0, int(total))

    @property
    def logged(self) -> int:
        """Size of the file of its metrics [bytes]."""
        with suppress(OSError):
            return (self.folder / METRICS).stat().st_size
        return 0

    def history(self, metric: str) -> list[float]:
        """A metric's values in the order in which the run logged them, without those that are not numbers."""
        with suppress(OSError, ValueError, csv.Error), (self.folder / METRICS).open(newline="") as file:
            return [value for row in csv.DictReader(file) if (value := _number(row.get(metric))) is not None]
        return []

    def value(self, metric: str) -> float | None:
        """A metric's last value; ``None`` if it was not logged or is not a number."""
        value = self._part("metrics").get(metric)
        return next(reversed(self.history(metric)), None) if value is None else _number(value)

    def is_done(self) -> bool:
        """Whether an earlier sweep has finished this run; a :class:`UsageError` if it was one of another command."""
        if self.status not in ("finished", STOPPED):
            return False
        if (head := self._logged_head()) not in (None, self.head):
            raise UsageError(f"{self.folder} was made by another command: {head} (--name starts another sweep)")
        return True

    def made_ready(self, say: Callable[[str], None]) -> "SweepRun":
        """This run, or one that continues an earlier process of this command; other files are moved aside."""
        if not self.folder.exists():
            return self
        before = self.command[: self.command.index("fit")] if "fit" in self.command else ()
        trains = {Path(word).name for word in before} & {"randbp", "randbp.cli.main"}
        if trains and self._logged_head() == self.head and find_latest(self.folder) is not None:
            say(f"{self.version}: goes on after its last complete epoch")
            return replace(self, command=(*self.command, "--resume"))
        store = self.folder.parent / ".unfinished"
        store.mkdir(exist_ok=True)
        kept = store / free_name(store, self.version)
        self.folder.rename(kept)
        if self.log.exists():
            self.log.rename(kept / self.log.name)
        say(f"{self.version}: the unfinished run is kept in {kept}")
        return self

    def start(self, lifeline: int, alone: bool) -> "subprocess.Popen[bytes]":
        """Start the run, which ends when this process ends: see :func:`randbp.cli.child.start`."""
        if str(file := self.log.with_suffix(".json")) in self.command:  # that ${args_json_file} stands for
            write_text(file, self.arguments)
        # Threads that wait for each other by spinning take the processor from those they wait for as soon as there is
        # other work: steps then take several times as long, and vary as much. A run on its own is faster with them.
        environment = ({} if alone else {"OMP_WAIT_POLICY": "PASSIVE"}) | os.environ
        with self.log.open("ab" if self.command[-1] == "--resume" else "wb") as log:
            log.write(f"{self.head}\n".encode())
            log.flush()
            return child.start(self.command, lifeline, environment, log)

    def settle(self, code: int, stopped: str | None = None) -> None:
        """Write the run's outcome into its summary if its process has not; why the sweep ``stopped`` it, if it has."""
        if (code == 0 and self.status == "finished") or (self.status == "failed" and stopped is None):
            return
        if code == 0 and stopped is None and not (self.folder / SUMMARY).exists():
            write_json(self.folder / SUMMARY, {"format": 1, "status": "finished"})
            return
        lines = self.log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines and not lines[-1].startswith("$ ") else f"exit code {code}"
        reason = stopped or (f"ended by signal {-code}" if code < 0 else last)
        status = "failed" if stopped is None else STOPPED
        write_json(self.folder / SUMMARY, {"format": 1} | self.summary() | {"status": status, "error": reason})

    def reopen(self) -> None:
        """Leave an interrupted run to the next worker."""
        if self.status == "failed":
            write_json(self.folder / SUMMARY, self.summary() | {"status": "interrupted"})

    def _part(self, key: str) -> dict[str, Any]:
        found = self.summary().get(key)
        return found if isinstance(found, dict) else {}

    def _logged_head(self) -> str | None:
        with suppress(OSError), self.log.open(errors="replace") as log:
            return log.readline().strip()
        return None


def _number(value: Any) -> float | None:
    """A finite number that a program has written; ``None`` for anything else."""
    with suppress(TypeError, ValueError):
        return number if math.isfinite(number := float(value)) else None
    return None
