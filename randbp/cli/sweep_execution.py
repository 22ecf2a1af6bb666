"""Execution of a sweep's runs, several at a time."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import child
from .run_folder import owned
from .stopping import Terminated, reason
from .sweep_plan import Plan
from .sweep_run import STOPPED, SweepRun

POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0


@dataclass
class Working:
    """A run whose process is running."""

    process: "subprocess.Popen[bytes]"  # what randbp.cli.child.start has returned
    began: float
    seen: int = -1  # size of its metrics when it was last looked whether it falls behind
    stopped: str | None = None  # why it is being stopped, if it is
    deadline: float = float("inf")  # when it is killed if it has not stopped


class Execution:
    """Carries out the runs of a plan, so many at the same time."""

    def __init__(self, plan: Plan, jobs: int, console: Console) -> None:
        self.plan, self.jobs, self.console = plan, jobs, console
        self.working: dict[SweepRun, Working] = {}
        self.done = 0

    def run(self) -> tuple[str, int] | None:
        """Carry out the runs that are not finished; return what has stopped that, and the exit code for it."""
        waiting = self._missing()
        runs = TextColumn("{task.fields[runs]}")
        times = TimeElapsedColumn(), TextColumn("gone, left"), TimeRemainingColumn()
        look: Any = {"console": self.console, "transient": True, "disable": not self.console.is_terminal}
        look["speed_estimate_period"] = float("inf")  # else nothing is known in epochs longer than half a minute
        progress = Progress(TextColumn("{task.description}"), BarColumn(), runs, *times, **look)
        with progress, lifeline() as line:
            task = progress.add_task("starting", total=self.plan.count, completed=self.done, runs="")
            try:
                while self._start(waiting, line) or self.working:
                    self._collect()
                    self._stop_those_behind()
                    epochs = {run.version: run.epochs for run in self.working}
                    shares = (min(done / total, 1.0) for done, total in epochs.values() if total)
                    progress.update(
                        task,
                        completed=self.done + sum(shares),
                        description=", ".join(f"{name}{_epoch(*it)}" for name, it in epochs.items()),
                        runs=f"run {min(self.done + 1, self.plan.count)} of {self.plan.count}",
                    )
                    time.sleep(POLL_SECONDS)
            except (KeyboardInterrupt, Terminated) as error:
                self.console.print("waiting for the runs to stop", style="red")
                child.stop([work.process for work in self.working.values()], signal.SIGINT, GRACE_SECONDS)
                for run, work in self.working.items():
                    self._interrupt(run, work)
                return reason(error)
        return None

    def _missing(self) -> Iterator[SweepRun]:
        """Yield the runs that are not finished, each made ready for its start."""
        known = list(self.plan.known())
        if self.plan.sweep.method != "bayes":
            self.plan.count = len(known)  # without those that were drawn twice
        missing = [run for run in known if not run.is_done()]
        for run in missing:
            if run.folder.exists():
                with owned(run.folder):  # not by a `randbp fit --resume` of the user's own, for one
                    pass
        self.done = len(known) - len(missing)
        if self.done:
            self._say(f"{self.done} of {self.plan.count} runs are finished already")
        return (run.made_ready(self._say) for run in chain(missing, self.plan))

    def _start(self, waiting: Iterator[SweepRun], line: int) -> bool:
        """Start runs until enough are running; false if none was left to start."""
        while len(self.working) < self.jobs and not self.target_reached():
            if (run := next(waiting, None)) is None:
                return False
            self.working[run] = Working(run.start(line, self.jobs == 1), time.monotonic())
        return bool(self.working)

    def target_reached(self) -> bool:
        """Whether some run has reached the sweep file's target, so that no other is started."""
        metric = self.plan.sweep.metric
        if metric is None or metric.target is None:
            return False
        values = (run.value(metric.name) for run in self.plan.runs.values() if run.status == "finished")
        return any(value is not None and metric.reaches_target(value) for value in values)

    def _collect(self) -> None:
        for run, work in list(self.working.items()):
            if (code := child.ended(work.process)) is not None:
                del self.working[run]
                self.done += 1
                run.settle(code, work.stopped)
                self._say(f"[{self.done}/{self.plan.count}] {run.version}  {self._outcome(run, work)}")
            elif time.monotonic() > work.deadline:
                child.send(work.process, signal.SIGKILL)

    def _interrupt(self, run: SweepRun, work: Working) -> None:
        run.settle(work.process.returncode, work.stopped)

    def _stop_those_behind(self) -> None:
        rule, metric = self.plan.sweep.early_terminate, self.plan.sweep.metric
        if rule is None or metric is None:
            return
        histories: dict[str, list[float]] = {}
        for run, work in self.working.items():
            size, seen = run.logged, work.seen
            work.seen = size
            if work.stopped is not None or size in (0, seen):
                continue
            histories = histories or {it.version: it.history(metric.name) for it in self.plan.runs.values()}
            if (band := rule.missed(run.history(metric.name), histories.values(), metric)) is not None:
                work.stopped = f"stopped early: {metric.name} is not among the best 1/{rule.eta:g} at {band}"
                work.deadline = time.monotonic() + GRACE_SECONDS
                child.send(work.process, signal.SIGTERM)

    def _outcome(self, run: SweepRun, work: Working) -> str:
        """What came of a run, with the sweep's metric, or the test accuracy where the sweep has none."""
        if run.status != "finished":
            return f"{'' if run.status == STOPPED else 'FAILED: '}{run.summary().get('error')}"
        metric = self.plan.sweep.metric
        name, form = ("test accuracy", ".1%") if metric is None else (metric.name, ".4g")
        value = run.value("test/accuracy" if metric is None else name)
        missing = "" if metric is None else f", no finite {name}"
        reached = missing if value is None else f", {name} {value:{form}}"
        return f"finished in {time.monotonic() - work.began:.0f} s{reached}"

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def lifeline() -> Iterator[int]:
    """The reading end of a pipe that closes when this process ends."""
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"):
        yield reading


def _epoch(done: int, total: int) -> str:
    return f" epoch {min(done + 1, total)} of {total}" if total else ""
