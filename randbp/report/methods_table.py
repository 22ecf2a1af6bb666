"""The comparison of methods as a table in the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..text.units import BYTES, PERCENT, SECONDS, quantity, ratio
from .finding import advice, finding
from .methods_file import Methods
from .runs import DISTURBED
from .standing import Standing, standings, timing_noise
from .table import MISSING

HEADINGS = ("held for backward", "peak memory", "time per step", "gradient error", "test accuracy", "difference")


def cells(standing: Standing) -> list[tuple[str, str]]:
    """The table's cells for a method: each value with its ratio to exact."""
    accuracy = paired = MISSING
    if standing.trained:
        accuracy = quantity(standing.accuracy.mean, standing.accuracy.std, PERCENT)
    if standing.trained and standing.method is not standing.exact:
        difference = standing.difference
        half = (difference.high - difference.low) / 2 * 100
        paired = f"{round(difference.estimate * 100, 1) + 0.0:+.1f}" + (f" ± {half:.1f}" if half < 1000 else "")
    trainings = standing.method.trainings
    return [
        (quantity(max(t.held_bytes for t in trainings), None, BYTES), ratio(standing.held)),
        (quantity(max(t.peak_bytes for t in trainings), None, BYTES), ratio(standing.peak)),
        (quantity(standing.seconds, None, SECONDS), ratio(standing.time.estimate)),
        (f"{standing.gradient_error:.2g}", ""),
        (accuracy, ""),
        (paired, ""),
    ]


def make_methods_table(methods: Methods) -> Table:
    """One row per method."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for standing in standings(methods):
        row = [
            Text.assemble(value, (f"{relation:>7}" if relation else "", "cyan")) for value, relation in cells(standing)
        ]
        table.add_row(Text(standing.method.name), *row)
    return table


def method_notes(methods: Methods) -> list[str]:
    """Notes that explain the table."""
    seeds = len(methods.exact.trainings)
    found = [
        f"× is relative to exact. Times: medians over {len(methods.exact.trainings[0].seconds) * seeds} rounds in "
        f"which the methods took turns, step by step, in one process; the machine alone makes exact steps differ by "
        f"{timing_noise(methods):.0%} (between quartiles).".replace("%", " %"),
        f"Accuracy: mean ± standard deviation over {seeds} seeds; beside it the mean of the differences between "
        "trainings of one seed, in points, ± half of its 95 % confidence interval. Gradient error: ‖ĝ - g‖ / ‖g‖ of "
        f"all gradients in the trained network; the minibatch alone makes {methods.minibatch_noise:.2g}.",
    ]
    timed = [method for method in methods.methods if not method.trained]
    if timed:
        rounds = max(sum(len(training.seconds) for training in method.trainings) for method in timed)
        found.append(
            f"Without an accuracy: took part in {rounds} of these rounds, to be timed, and was not trained to the end. "
            "Where the gradient error is 0, the training would be exact's."
        )
    if (methods.waiting_threads or 0) > DISTURBED:
        found.append(
            "Other work took processors meanwhile: do not trust the times, and run it again on a quiet machine."
        )
    return found


def print_methods(methods: Methods, console: Console) -> None:
    """Print the finding, the table and the advice."""
    stand = standings(methods)
    console.print()
    console.print(Text(finding(stand)), style="bold", highlight=False)
    console.print(make_methods_table(methods))
    for note in method_notes(methods):
        console.print(Text(note), style="dim", highlight=False, soft_wrap=True)
    for line in advice(stand, methods.minibatch_noise):
        console.print(Text(f"· {line}"), highlight=False, soft_wrap=True)
    console.print()
