"""``randbp sweep``: the runs of a sweep file, one process each, on this machine and without an account."""

import difflib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from randbp.callbacks.files import write_text
from randbp.report.damaged import Damaged

from .errors import OptionParser, UsageError
from .report import make_console, write_report
from .run_folder import check_name
from .stopping import Stopped, sigterm_raises
from .sweep_command import check_program
from .sweep_execution import Execution
from .sweep_folder import owned_by_sweep
from .sweep_plan import Options, Plan
from .sweep_run import SweepRun


def main(argv: Sequence[str]) -> int:
    """Carry out the runs of a sweep file, print their table and write the report; returns 1 if a run failed, else 0."""
    parser = OptionParser(
        prog="randbp sweep",
        description="Make the runs of a sweep file in W&B's format on this machine, one process each.",
        epilog="Further options go to each run, e.g. --trainer.max_epochs=1.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="sweep file (method grid, random or bayes)")
    parser.add_argument("--name", help="folder of the runs below the root (default: the sweep's name)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all results (default: runs)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time (default: 1; more disturb the timing)"
    )
    parser.add_argument("--count", type=int, help="number of runs (default: run_cap in the file; of a grid all)")
    parser.add_argument("--seed", type=int, default=0, help="of what random and bayes draw (default: 0)")
    parser.add_argument("--resume", action="store_true", help="keep what is finished, go on with the rest")
    given, extra = parser.parse_known_args(argv)
    _refuse_misspelt(extra)
    for name, least in (("jobs", 1), ("count", 1), ("seed", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UsageError(f"--{name}={value}: expected an integer >= {least}")
    return run_sweep(Options(**vars(given), extra=tuple(extra)))


def run_sweep(options: Options) -> int:
    """Carry out the runs of a sweep file; returns what :func:`main` does. An interruption raises :class:`Stopped`."""
    console, file = make_console(), options.file
    if options.name is not None:
        check_name("--name", options.name, several=True)
    sweep = Plan(options)
    if options.name is None:
        check_name(f"{file}: name", sweep.name, several=True)
    check_program(str(file), sweep.example().command)
    if sweep.folder.exists() and not options.resume:
        raise UsageError(f"{sweep.folder} exists and is left as it is: --resume continues it, --name starts another")
    with owned_by_sweep(sweep.folder) as lock:
        sweep.take_up()
        write_text(sweep.folder / "sweep.yaml", sweep.text)
        execution = Execution(sweep, options.jobs, lock, console)
        with sigterm_raises():
            stop = execution.run()
    console.print()
    runs = list(sweep.runs.values())
    try:
        write_report(sweep.folder, console)
    except (FileNotFoundError, Damaged) as error:  # of programs that write no summary, or one that is not randbp's
        console.print(f"no report: {error}", highlight=False, markup=False, soft_wrap=True)
    failed = [run for run in runs if run.status in ("open", "failed")]
    if execution.target_reached():
        left = sum(run.status == "open" for run in failed)
        failed = [run for run in failed if run.status == "failed"]
        console.print(f"the metric's target is reached: {left} of {len(runs)} runs were not needed", highlight=False)
    for run in failed:
        print(f"randbp sweep: {run.version}: {_reason(run)}", file=sys.stderr)
    if stop is not None:
        why, code = stop
        raise Stopped(f"{why}; to go on: {_how_to_resume(options)}", code)
    if failed:
        message = f"{len(failed)} of {len(runs)} runs did not finish; what the others gave is complete"
        print(f"randbp sweep: {message}", file=sys.stderr)
    return int(bool(failed))


def _refuse_misspelt(extra: Sequence[str]) -> None:
    """Refuse options for the runs that look like misspelt options of the sweep."""
    own = ("--name", "--root", "--jobs", "--count", "--seed", "--resume", "--help")
    for word in extra:
        name = word.partition("=")[0]
        if name not in own and (close := difflib.get_close_matches(name, own, n=1, cutoff=0.8)):
            raise UsageError(f"no option {name} (did you mean {close[0]}?)")


def _reason(run: SweepRun) -> str:
    summary = run.summary()
    return f"{summary.get('error') or 'ended without a word'} (log: {run.log})" if summary else "not started"


def _how_to_resume(options: Options) -> str:
    """The command that continues a sweep."""
    default = Options(options.file)
    names = ("name", "root", "jobs", "count", "seed")
    changed = [(name, getattr(options, name)) for name in names if getattr(options, name) != getattr(default, name)]
    told = (f"--{name}={value}" for name, value in changed)
    return shlex.join(["randbp", "sweep", str(options.file), "--resume", *told, *options.extra])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
