"""``randbp sweep``: the runs of a sweep file, one process each, on this machine and without an account."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from randbp.callbacks.files import write_text
from randbp.report.damaged import Damaged
from randbp.text.near_words import nearest

from . import sweep_worker
from .errors import OptionParser, UsageError
from .report import make_console, write_report
from .run_folder import is_rank_zero, owned
from .stopping import Stopped, sigterm_raises
from .sweep_command import check_program, command_line
from .sweep_execution import Execution
from .sweep_plan import Plan
from .sweep_worker import Worker


def make_parser() -> OptionParser:
    """Make the parser of the command's own options."""
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
    parser.add_argument(
        "--worker", action="store_true", help="make runs beside other workers, which share the root folder alone"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Carry out the runs of a sweep file, print their table and write the report; returns 1 if a run failed, else 0."""
    given, extra = make_parser().parse_known_args(argv)
    own = [f"--{name}" for name in vars(given) if name != "file"]
    for word in (word.partition("=")[0] for word in extra):
        if word not in own and (meant := nearest(word, own, 0.8)):
            raise UsageError(f"no option {word}{meant}")
    for name, least in (("jobs", 1), ("count", 1), ("seed", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UsageError(f"--{name}={value}: expected an integer >= {least}")
    plan = Plan(given.file, given.name, given.root, given.count, given.seed, extra)
    check_program(str(given.file), command_line(plan.sweep.command, plan.sweep.program, {}))
    if not is_rank_zero():
        raise UsageError("this is one of several processes of a job, expected one per job, as in a job array")
    if given.worker and given.resume:
        raise UsageError("--worker: takes up open runs by itself, expected it without --resume")
    if plan.folder.exists() and not (given.resume or given.worker):
        raise UsageError(f"{plan.folder} exists and is left as it is: --resume continues it, --name starts another")
    console = make_console()
    try:
        (plan.folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{plan.folder}: no folder for a sweep can be made there: {error.strerror}") from error
    hold = partial(owned, plan.folder, "sweep is working", sweep_worker.PATIENCE if given.worker else None)
    with ExitStack() as ownership:
        ownership.enter_context(hold())
        plan.take_up()
        _keep(given.file, plan.folder / "sweep.yaml", given.worker)
        execution = (Worker if given.worker else Execution)(plan, given.jobs, console)
        if given.worker:
            ownership.close()  # until it chooses a run
        with sigterm_raises():
            stop = execution.run()
        if given.worker:
            ownership.enter_context(hold())
        failed = _report(plan, console, execution.target_reached())
    if stop is not None:
        again = [*argv, *([] if given.resume or given.worker else ["--resume"])]
        raise Stopped(f"{stop[0]}; to go on: {shlex.join(['randbp', 'sweep', *again])}", stop[1])
    if failed:
        message = f"{failed} of {len(plan.runs)} runs did not finish; what the others gave is complete"
        print(f"randbp sweep: {message}", file=sys.stderr)
    return int(bool(failed))


def _keep(file: Path, copy: Path, others: bool) -> None:
    """Keep a copy of the sweep file, which must be that of ``others`` if there are any."""
    text = file.read_text(encoding="utf-8")
    if others and copy.exists() and copy.read_text(encoding="utf-8") != text:
        raise UsageError(f"{file}: other workers run another file, {copy} (--name starts another sweep)")
    write_text(copy, text)


def _report(plan: Plan, console: Console, target_reached: bool) -> int:
    """Print and write what came of the runs; returns how many did not finish, but should have."""
    console.print()
    try:
        write_report(plan.folder, console)
    except (FileNotFoundError, Damaged) as error:  # of programs that write no summary, or one that is not randbp's
        console.print(f"no report: {error}", highlight=False, markup=False, soft_wrap=True)
    failed = [run for run in plan.runs.values() if run.status in ("open", "failed")]
    if target_reached:
        needed = [run for run in failed if run.status == "failed"]
        left = f"{len(failed) - len(needed)} of {len(plan.runs)} runs were not needed"
        console.print(f"the metric's target is reached: {left}", highlight=False)
        failed = needed
    for run in failed:
        summary = run.summary()
        why = f"{summary.get('error') or 'ended without a word'} (log: {run.log})" if summary else "not started"
        print(f"randbp sweep: {run.version}: {why}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
