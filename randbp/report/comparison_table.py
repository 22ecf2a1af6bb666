"""The comparison of keep rates as a table, with the notes that explain it."""

from functools import partial

from rich.console import Console
from rich.text import Text

from ..text.units import BYTES, PERCENT, SECONDS, Unit, quantity, ratio
from .groups import Comparison, Group, Measure
from .printable import printable
from .statistic import Statistic
from .table import MISSING, Cell, Column, Table
from .target import Target

COST_COLUMNS: tuple[tuple[str, str, tuple[Unit, ...]], ...] = (
    ("step_seconds", "time per step", SECONDS),
    ("held_bytes", "held for backward", BYTES),
    ("peak_bytes", "peak memory", BYTES),
)


def accuracy_name(comparison: Comparison) -> str:
    """The accuracy's name as a heading: ``test/accuracy`` becomes ``test accuracy``."""
    return (comparison.accuracy or "test accuracy").replace("/", " ").replace("_", " ")


def wants_labels(comparison: Comparison) -> bool:
    """Whether keep rates alone do not distinguish the rows."""
    labels = {comparison.label(group) for group in comparison.groups if not group.exact}
    return len(labels) > 1 or any(group.settings for group in comparison.groups)


def make_table(comparison: Comparison) -> Table:
    """Make the table: one row per group, each measure with its ratio to exact backpropagation."""
    labelled = wants_labels(comparison)
    several = any(len(group.runs) > 1 for group in comparison.groups) or bool(comparison.problems)
    measured = [accuracy_name(comparison), *(heading for _, heading, _ in COST_COLUMNS)]
    columns = (
        *[Column("estimator", "text")] * labelled,
        Column("keep rate", "keep"),
        *(Column(heading, "measure") for heading in measured),
        *[Column("runs", "count")] * several,
    )
    rows = []
    for group in comparison.groups:
        finished, count = len(group.finished), len(group.runs)
        told = Cell(str(count) if finished == count else f"{finished} of {count}", bad=finished < count)
        cells = [*[Cell(comparison.label(group))] * labelled, Cell(group.leading.rate), *_measures(comparison, group)]
        rows.append(("exact" if group.exact else "", [*cells, *[told] * several]))
    return Table("main", columns, rows)


def _measures(comparison: Comparison, group: Group) -> list[Cell]:
    """The cells of the accuracy and of each of the costs; a ratio is of times that can be trusted."""

    def cell(shown: Measure, related: Measure, units: tuple[Unit, ...]) -> Cell:
        statistic, relation = shown(group), comparison.ratio(group, related)
        value = MISSING if statistic is None else quantity(statistic.mean, statistic.std, units)
        return Cell(value, "" if relation is None else ratio(relation))

    def accuracy(group: Group) -> Statistic | None:
        return group.metric(comparison.accuracy or "")

    cells = [cell(accuracy, accuracy, PERCENT)]
    for cost, _, units in COST_COLUMNS:
        trusted = partial(Group.cost, name=cost, trusted=True)
        cells.append(cell(trusted if trusted(group) else partial(Group.cost, name=cost), trusted, units))
    return cells


def print_table(comparison: Comparison, console: Console) -> None:
    """Print the table, with notes that explain it below."""
    if comparison.groups:
        console.print(make_table(comparison).for_terminal())
    lines = [(note, "dim") for note in notes(comparison)]
    lines += [(f"{run.name}: {run.problem}", "red") for run in comparison.problems]
    lines += [(printable(f"left out: {damage}"), "red") for damage in comparison.results.damaged]
    for line, style in lines:
        console.print(Text(line), style=style, highlight=False, soft_wrap=True)


def notes(comparison: Comparison) -> list[str]:
    """Notes that explain the table."""
    found = _best_run(comparison)
    if any(comparison.exact(group) for group in comparison.groups):
        found.append("× is relative to exact backpropagation (keep rate 1).")
    if missing := sum(comparison.exact(group) is None for group in comparison.groups):
        rows = "these runs" if missing == len(comparison.groups) else f"{missing} of the rows"
        found.append(f"No finished exact run (keep rate 1) stands beside {rows}, so ratios are left out.")
    if any(len(group.finished) > 1 for group in comparison.groups):
        found.append("± is the standard deviation over runs that differ only in their seed.")
    if disturbed := [run for run in comparison.runs if run.finished and run.disturbed]:
        which = "all runs" if len(disturbed) == len(comparison.runs) else ", ".join(run.name for run in disturbed)
        found.append(
            f"Other work took processors from {which}: do not trust the times. Ratios and plots leave them out."
        )
    sources = {run.summary.cost.peak_source for run in comparison.runs if run.finished}
    if texts := sorted(source for source in sources if source):
        found.append(f"Peak memory: {' / '.join(texts)}.")
    return found


def _best_run(comparison: Comparison) -> list[str]:
    """A line on the best run by the sweep's metric, or why there is none; without a sweep by the accuracy."""
    if (target := comparison.results.target) is None:
        if comparison.accuracy is None or sum(run.finished for run in comparison.runs) < 2:
            return []
        target = Target(name=comparison.accuracy, goal="maximize")
    if (best := target.best(comparison.runs)) is None:
        return [f"No finished run has the sweep's metric {target.name}, so none is the best."]
    which = "lowest" if target.goal == "minimize" else "highest"
    number = sum(run.finished for run in comparison.runs)
    return [f"Best run: {best.name}, {target.name} {target.value(best):.4g}, the {which} of {number}."]
