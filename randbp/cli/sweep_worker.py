"""Workers of a sweep: processes, on as many machines as you like, that share nothing but the sweep's folder.

Each run is claimed by a lock on a file, which the system gives back when a worker ends, for whatever reason. What is
claimed next is decided by one worker at a time, which owns the sweep's folder for that moment.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from filelock import FileLock, Timeout

from .errors import UsageError
from .run_folder import owned
from .sweep_execution import Execution, Working
from .sweep_run import SweepRun

LOOK_SECONDS = 1.0  # between two looks for runs that nobody works at
PATIENCE = 60.0  # for other workers to choose their runs [seconds]
OTHER = "sweep, which is no --worker, is working"


class Worker(Execution):
    """Carries out those runs of a plan that no other worker has claimed, until none is open."""

    def _missing(self) -> Iterator[SweepRun]:
        self._claims: dict[str, FileLock] = {}
        self._look_at, self._are_open = 0.0, True
        return iter(())

    def _start(self, waiting: Iterator[SweepRun], line: int) -> bool:
        """Start runs that nobody works at until enough are running; false if none is open anywhere."""
        if self.target_reached():
            return False
        if len(self.working) < self.jobs and time.monotonic() >= self._look_at:
            with owned(self.plan.folder, OTHER, PATIENCE):
                for run in self._free():
                    ready = run.made_ready(self._say)
                    self.working[ready] = Working(ready.start(line, self.jobs == 1), time.monotonic())
            self._look_at = time.monotonic() + LOOK_SECONDS
        return self._are_open

    def _free(self) -> Iterator[SweepRun]:
        """Claim and yield as many runs as may be started, those that other workers have left first."""
        self.plan.take_up()
        list(self.plan.known())  # what others have drawn
        still = [run for run in self.plan.runs.values() if not run.is_done() and run.status == "open"]
        self.done = len(self.plan.runs) - len(still)
        if self.plan.sweep.method != "bayes":
            self.plan.count = len(self.plan.runs)  # without those that were drawn twice
        self._are_open = bool(still)
        runs = chain(still, self.plan)  # which draws further ones only if asked for them
        while len(self.working) < self.jobs and (run := next(filter(self._claim, runs), None)) is not None:
            yield run

    def _claim(self, run: SweepRun) -> bool:
        """Claim a run, unless another worker has, or a process trains in its folder."""
        if run.version in self._claims:
            return False
        lock = FileLock(run.log.with_suffix(".claim"))
        with suppress(Timeout, UsageError):
            lock.acquire(timeout=0)
            if run.status == "open":  # still: another worker may have ended it since
                if run.folder.exists():
                    with owned(run.folder):
                        pass
                self._claims[run.version] = lock
                return True
        lock.release()
        return False

    def _collect(self) -> None:
        super()._collect()
        for version in self._claims.keys() - {run.version for run in self.working}:
            self._claims.pop(version).release()
            self._look_at = 0.0  # for the next one, at once

    def _interrupt(self, run: SweepRun, work: Working) -> None:
        super()._interrupt(run, work)
        run.reopen()
