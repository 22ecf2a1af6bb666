"""The comparison as a table in the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..text.units import BYTES, PERCENT, SECONDS, Unit, quantity, ratio
from .damaged import Damaged
from .groups import Comparison, Group, Statistic
from .printable import printable

COST_COLUMNS: tuple[tuple[str, str, tuple[Unit, ...]], ...] = (
    ("step_seconds", "time per step", SECONDS),
    ("held_bytes", "held for backward", BYTES),
    ("peak_bytes", "peak memory", BYTES),
)
MISSING = "–"


def accuracy_name(comparison: Comparison) -> str:
    """The accuracy's name as a heading: ``test/accuracy`` becomes ``test accuracy``."""
    return (comparison.accuracy or "test accuracy").replace("/", " ").replace("_", " ")


Measure = tuple[Statistic | None, float | None, tuple[Unit, ...]]


def measures(comparison: Comparison, group: Group) -> list[Measure]:
    """Accuracy, then each of :data:`COST_COLUMNS`, of one group: statistic, ratio to exact, units."""

    def accuracy(group: Group) -> Statistic | None:
        return group.metric(comparison.accuracy or "")

    found: list[Measure] = [(accuracy(group), comparison.ratio(group, accuracy), PERCENT)]
    for cost, _, units in COST_COLUMNS:

        def trusted(group: Group, cost: str = cost) -> Statistic | None:
            return group.trusted_cost(cost)

        found.append((trusted(group) or group.cost(cost), comparison.ratio(group, trusted), units))
    return found


def wants_labels(comparison: Comparison) -> bool:
    """Whether keep rates alone do not distinguish the rows."""
    labels = {comparison.label(group) for group in comparison.groups if not group.exact}
    return len(labels) > 1 or any(group.settings for group in comparison.groups)


def make_table(comparison: Comparison) -> Table:
    """Make the table: one row per group, each measure with its ratio to exact backpropagation."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    told = wants_labels(comparison)
    if told:
        table.add_column("estimator", no_wrap=False)
    table.add_column("keep rate", justify="right", no_wrap=True)
    for heading in (accuracy_name(comparison), *(heading for _, heading, _ in COST_COLUMNS)):
        table.add_column(Text(heading), justify="right")
    several = any(len(group.runs) > 1 for group in comparison.groups) or comparison.problems
    if several:
        table.add_column("runs", justify="right", no_wrap=True)
    for group in comparison.groups:
        cells = [Text(comparison.label(group))] if told else []
        cells.append(Text(group.rate))
        for statistic, relation, units in measures(comparison, group):
            value = MISSING if statistic is None else quantity(statistic.mean, statistic.std, units)
            cells.append(Text.assemble(value, ("" if relation is None else f"{ratio(relation):>7}", "cyan")))
        if several:
            whole = len(group.finished) == len(group.runs)
            count = str(len(group.runs)) if whole else f"{len(group.finished)} of {len(group.runs)}"
            cells.append(Text(count, style="" if whole else "red"))
        table.add_row(*cells)
    return table


def print_table(comparison: Comparison, console: Console) -> None:
    """Print the table, with notes that explain it below."""
    if comparison.groups:
        console.print(make_table(comparison))
    for note in notes(comparison):
        _tell(console, note, "dim")
    for run in comparison.problems:
        _tell(console, f"{run.name}: {run.problem}", "red")
    for damage in comparison.damaged:
        _tell(console, left_out(damage), "red")


def _tell(console: Console, line: str, style: str) -> None:
    console.print(Text(line), style=style, highlight=False, soft_wrap=True)


def left_out(damage: Damaged) -> str:
    """A line on a file that could not be read, with the reason."""
    return printable(f"left out: {damage}")


def notes(comparison: Comparison) -> list[str]:
    """Notes that explain the table."""
    found = best_run(comparison)
    if any(comparison.exact(group) for group in comparison.groups):
        found.append("× is relative to exact backpropagation (keep rate 1).")
    if missing := sum(comparison.exact(group) is None for group in comparison.groups):
        rows = "these runs" if missing == len(comparison.groups) else f"{missing} of the rows"
        found.append(f"No finished exact run (keep rate 1) stands beside {rows}, so ratios are left out.")
    if any(len(group.finished) > 1 for group in comparison.groups):
        found.append("± is the standard deviation over runs that differ only in their seed.")
    if disturbed := comparison.disturbed:
        which = "all runs" if len(disturbed) == len(comparison.runs) else ", ".join(run.name for run in disturbed)
        found.append(
            f"Other work took processors from {which}: do not trust the times. Ratios and plots leave them out."
        )
    sources = {run.summary.cost.peak_source for run in comparison.runs if run.finished}
    if texts := sorted(source for source in sources if source):
        found.append(f"Peak memory: {' / '.join(texts)}.")
    return found


def best_run(comparison: Comparison) -> list[str]:
    """A line on the best run by the sweep's metric, or why there is none; empty if no sweep names a metric."""
    target, best = comparison.target, comparison.best
    if target is None:
        return []
    if best is None:
        return [f"No finished run has the sweep's metric {target.name}, so none is the best."]
    value = target.value(best)
    which = "lowest" if target.goal == "minimize" else "highest"
    number = sum(run.finished for run in comparison.runs)
    return [f"Best run: {best.name}, {target.name} {value:.4g}, the {which} of {number}."]
