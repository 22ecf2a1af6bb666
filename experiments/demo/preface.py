"""The comparison of methods: printed, and as the preface of the report's page."""

from html import escape

from rich.console import Console
from rich.text import Text

from randbp.report.markup import definitions, facts, figures, paragraphs
from randbp.report.run import DISTURBED
from randbp.report.table import MISSING, Cell, Column, Table
from randbp.text.units import BYTES, PERCENT, SECONDS, quantity, ratio

from .finding import advice, finding, other_findings
from .methods import Methods
from .plots import accuracy_difference_plot, tradeoff_plot
from .standing import Standing, standings, timing_noise

COLUMNS = (
    Column("method", "code"),
    *(Column(heading, "measure") for heading in ("held for backward", "peak memory", "time per step")),
    *(Column(heading) for heading in ("gradient error", "test accuracy", "difference")),
)


def make_methods_table(methods: Methods) -> Table:
    """One row per method, with ratios to exact."""
    rows = [("exact" if it.method.role == "exact" else "", _cells(it)) for it in standings(methods)]
    return Table("main", COLUMNS, rows)


def _cells(standing: Standing) -> list[Cell]:
    accuracy = paired = MISSING
    if standing.trained:
        accuracy = quantity(standing.accuracy.mean, standing.accuracy.std, PERCENT)
    if standing.trained and standing.method is not standing.exact:
        difference = standing.difference
        half = (difference.high - difference.low) / 2 * 100
        paired = f"{round(difference.estimate * 100, 1) + 0.0:+.1f}" + (f" ± {half:.1f}" if half < 1000 else "")
    trainings = standing.method.trainings
    return [
        Cell(standing.method.name),
        Cell(quantity(max(t.held_bytes for t in trainings), None, BYTES), ratio(standing.held)),
        Cell(quantity(max(t.peak_bytes for t in trainings), None, BYTES), ratio(standing.peak)),
        Cell(quantity(standing.seconds, None, SECONDS), ratio(standing.time.estimate)),
        *(Cell(text) for text in (f"{standing.gradient_error:.2g}", accuracy, paired)),
    ]


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
    if timed := [method for method in methods.methods if not method.trained]:
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
    console.print(make_methods_table(methods).for_terminal())
    lines = [(note, "dim") for note in method_notes(methods)]
    lines += [(f"· {line}", "") for line in advice(stand, methods.minibatch_noise)]
    for line, style in lines:
        console.print(Text(line), style=style, highlight=False, soft_wrap=True)
    console.print()


def make_preface(methods: Methods) -> str:
    """Make the preface of the page: facts of the comparison, finding, table, plots and advice."""
    told = [methods.model, methods.data, f"{methods.parameters:,} parameters", f"batch {methods.batch_size}"]
    stand = standings(methods)
    items = "".join(f"<li>{escape(line)}</li>" for line in advice(stand, methods.minibatch_noise))
    if items:
        changes = f"<h2>What does not pay here, and what to change</h2><ul class=advice>{items}</ul>"
    else:
        changes = "<h2>What to change</h2><p>Nothing: every preset pays here.</p>"
    sections = (
        facts([*told, f"{methods.steps} steps", f"{len(methods.exact.trainings)} seeds"]),
        paragraphs("lead", [finding(stand)]),
        paragraphs("more", other_findings(stand)),
        make_methods_table(methods).as_html(),
        paragraphs("note", method_notes(methods)),
        figures("two", [tradeoff_plot(methods), accuracy_difference_plot(methods)]),
        changes,
        "<h2>What was compared</h2>",
        paragraphs("about", methods.about),
        definitions((method.name, method.what) for method in methods.methods),
    )
    return "".join(sections)
