"""``randbp sweep``: the runs of a sweep file, one process each, on this machine and without an account."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from randbp.callbacks.files import write_json
from randbp.report.runs import SUMMARY

from .errors import UsageError
from .report import make_console, write_report
from .sweep_file import command_line, read_sweep, version_name

POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Planned:
    """One run that is to be made.

    Args:
        version: Name of its folder.
        folder: The folder itself.
        log: Where its output goes.
        command: What starts it.
    """

    version: str
    folder: Path
    log: Path
    command: tuple[str, ...]

    @property
    def head(self) -> str:
        """First line of the log: the command."""
        first = "python" if self.command[0] == sys.executable else self.command[0]
        return f"$ {shlex.join((first, *self.command[1:]))}"

    def summary(self) -> dict[str, Any]:
        """The run's summary, empty while there is none."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.folder / SUMMARY).read_text()))
        return {}


def main(argv: Sequence[str]) -> int:
    """Make the runs of a sweep file, then print their table and write the report.

    Args:
        argv: The sweep file, and options; those not known here go to each run.

    Returns:
        The exit code: 0, or 1 if a run failed, 130 if the sweep was interrupted.

    Raises:
        UsageError: If the file cannot be used, or there are results already and no ``--resume``.
    """
    parser = argparse.ArgumentParser(
        prog="randbp sweep",
        description="Make the runs of a sweep file in W&B's format on this machine, one process each.",
        epilog="Further options go to each run, e.g. --trainer.max_epochs=1.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="sweep file (method grid or random)")
    parser.add_argument("--name", help="folder of the runs below the root (default: the sweep's name)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all results (default: runs)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time (default: 1; more disturb the timing)"
    )
    parser.add_argument("--count", type=int, help="number of runs of a random sweep")
    parser.add_argument("--resume", action="store_true", help="keep what is finished, make the rest")
    options, extra = parser.parse_known_args(argv)
    if options.jobs < 1:
        raise UsageError(f"--jobs={options.jobs}, expected a positive number")
    if options.count is not None and options.count < 1:
        raise UsageError(f"--count={options.count}, expected a positive number")
    return run_sweep(
        options.file,
        name=options.name,
        root=options.root,
        jobs=options.jobs,
        count=options.count,
        resume=options.resume,
        extra=extra,
    )


def run_sweep(
    file: Path,
    name: str | None = None,
    root: Path = Path("runs"),
    jobs: int = 1,
    count: int | None = None,
    resume: bool = False,
    extra: Sequence[str] = (),
    console: Console | None = None,
) -> int:
    """Make the runs of a sweep file; the arguments are those of the command line.

    Returns:
        The exit code, see :func:`main`.

    Raises:
        UsageError: See :func:`main`.
    """
    console = console or make_console()
    sweep = read_sweep(file)
    name = name or sweep.name
    folder = root / name
    runs = plan(file, name, root, count, extra)
    if folder.exists() and not resume:
        raise UsageError(f"{folder} exists and is left as it is: --resume continues it, --name starts another")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            missing = [run for run in runs if not _is_done(run)]
            if len(missing) < len(runs):
                console.print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished already", highlight=False)
            for run in missing:
                _set_aside(run, console)
            shutil.copyfile(file, folder / "sweep.yaml")
            interrupted = _execute(missing, len(runs), jobs, console)
    except Timeout:
        raise UsageError(f"{folder}: another sweep is working there") from None
    console.print()
    if any(run.summary() for run in runs):
        write_report(folder, console)
    failed = [run for run in runs if run.summary().get("status") != "finished"]
    if failed:
        console.print(
            f"{len(failed)} of {len(runs)} runs did not finish; what the others gave is complete:", style="red"
        )
        for run in failed:
            reason = run.summary().get("error") or "not started"
            console.print(f"  {run.version}: {reason} (log: {run.log})", highlight=False, markup=False, soft_wrap=True)
    return 130 if interrupted else int(bool(failed))


def plan(
    file: Path, name: str, root: Path = Path("runs"), count: int | None = None, extra: Sequence[str] = ()
) -> list[Planned]:
    """The runs of a sweep file: their folders and commands.

    Raises:
        UsageError: If the file cannot be used.
    """
    sweep = read_sweep(file)
    folder = root / name
    runs: dict[str, Planned] = {}
    for values in sweep.runs(count):
        version = version_name(sweep, values)
        place = [f"--trainer.default_root_dir={root}", f"--name={name}", f"--version={version}"]
        command = (*command_line(sweep, values), *extra, *place)
        runs.setdefault(version, Planned(version, folder / version, folder / "logs" / f"{version}.log", command))
    return list(runs.values())


def free_name(root: Path, name: str) -> str:
    """The name, or with the next number where there are results of that name already.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     (Path(root) / "demo").mkdir()
        ...     free_name(Path(root), "demo"), free_name(Path(root), "other")
        ('demo-2', 'other')
    """
    number, candidate = 1, name
    while (root / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _is_done(run: Planned) -> bool:
    if run.summary().get("status") != "finished":
        return False
    with suppress(OSError), run.log.open() as log:
        head = log.readline().strip()
        if head != run.head:
            raise UsageError(f"{run.folder} was made by another command: {head[2:]} (--name starts another sweep)")
    return True


def _set_aside(run: Planned, console: Console) -> None:
    """Keep what an unfinished run has left, out of the way of its repetition."""
    if not run.folder.exists():
        return
    store = run.folder.parent / ".unfinished"
    store.mkdir(exist_ok=True)
    kept = store / free_name(store, run.version)
    run.folder.rename(kept)
    if run.log.exists():
        run.log.rename(kept / run.log.name)
    console.print(f"{run.version}: the unfinished run is kept in {kept}", highlight=False, markup=False, soft_wrap=True)


def _execute(runs: Sequence[Planned], total: int, jobs: int, console: Console) -> bool:
    """Make the runs, so many at a time; true if the user interrupted them."""
    waiting = list(runs)
    working: dict[Planned, tuple[subprocess.Popen[bytes], float]] = {}
    done = total - len(runs)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[runs]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=total, runs=f"run {min(done + 1, total)} of {total}")
        try:
            while waiting or working:
                while waiting and len(working) < jobs:
                    run = waiting.pop(0)
                    working[run] = _start(run, jobs), time.monotonic()
                for run, (process, began) in list(working.items()):
                    if process.poll() is None:
                        continue
                    del working[run]
                    done += 1
                    _settle(run, process.returncode)
                    _tell(run, done, total, time.monotonic() - began, console)
                parts = [_fraction(run) for run in working]
                text = ", ".join(f"{run.version}{_epoch(run)}" for run in working)
                number = f"run {min(done + 1, total)} of {total}"
                progress.update(task, completed=done + sum(parts), description=text, runs=number)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            console.print("interrupted: waiting for the runs to stop", style="red")
            _stop([process for process, _ in working.values()])
            for run, (process, _) in working.items():
                _settle(run, process.returncode)
            return True
    return False


def _start(run: Planned, jobs: int) -> "subprocess.Popen[bytes]":
    run.log.write_text(run.head + "\n")
    # Threads that wait for each other by spinning take the processor from those they wait for as soon as there is
    # other work: steps then take several times as long, and vary as much. A run on its own is faster with them.
    environment = ({"OMP_WAIT_POLICY": "PASSIVE"} if jobs > 1 else {}) | os.environ
    with run.log.open("ab") as log:
        return subprocess.Popen(
            run.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait for processes that got the user's Ctrl-C as well; end those that do not obey."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _settle(run: Planned, code: int) -> None:
    """See to it that a process that failed has said so in its summary, even if it had no time to."""
    summary = run.summary()
    if code == 0 and summary.get("status") == "finished":
        return
    if summary.get("status") == "failed":
        return
    lines = run.log.read_text(errors="replace").strip().splitlines()[1:]
    reason = f"ended by signal {-code}" if code < 0 else lines[-1] if lines else f"exit code {code}"
    write_json(run.folder / SUMMARY, {"format": 1} | summary | {"status": "failed", "error": reason})


def _tell(run: Planned, done: int, total: int, seconds: float, console: Console) -> None:
    summary = run.summary()
    accuracy = summary.get("metrics", {}).get("test/accuracy")
    if summary.get("status") == "finished":
        outcome = f"finished in {seconds:.0f} s"
        outcome += "" if accuracy is None else f", test accuracy {float(accuracy):.1%}"
    else:
        outcome = f"FAILED: {summary.get('error')}"
    console.print(f"[{done}/{total}] {run.version}  {outcome}", highlight=False, markup=False, soft_wrap=True)


def _fraction(run: Planned) -> float:
    progress = run.summary().get("progress", {})
    epochs, most = progress.get("epochs") or 0, progress.get("max_epochs") or 0
    return min(epochs / most, 1.0) if most > 0 else 0.0


def _epoch(run: Planned) -> str:
    progress = run.summary().get("progress", {})
    epochs, most = progress.get("epochs"), progress.get("max_epochs") or -1
    return "" if epochs is None or most < 0 else f" epoch {min(epochs + 1, most)} of {most}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
