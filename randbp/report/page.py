"""The comparison as one self-contained HTML file."""

from collections.abc import Callable, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from randbp.callbacks.files import write_text

from ..text.units import BYTES, PERCENT, SECONDS, Unit, interval, quantity, ratio
from .comparison_table import accuracy_name, make_table, notes, wants_labels
from .groups import Comparison, Group
from .markup import definitions, facts, figures, paragraphs
from .pareto import pareto_plots
from .plots import accuracy_plot, cost_plots, loss_plot
from .printable import printable
from .run import Run
from .table import MISSING, Cell, Column, Table

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
MEASURED = (
    (
        "Time per step",
        "Median over the training steps of forward, backward and update, without data loading. The first steps, and "
        "those on which bytes are counted, are left out. CUDA events on a GPU, wall clock on a CPU.",
    ),
    (
        "Held for backward",
        "Bytes that autograd holds when the backward pass begins: every storage once with its whole size, parameters "
        "and buffers excluded. The largest of the steps on which it was counted.",
    ),
    (
        "Peak memory",
        "On a GPU the peak of PyTorch's allocator since the start of the training. On a CPU model, gradients and "
        "optimiser state and the allocator's peak above them, on the steps on which bytes are counted: tensors alone.",
    ),
)
RUNS_NOTE = (
    "Step: median time per step, with its quartiles over the timed steps. Waiting: threads that "
    "found no free processor, on average; far above zero, other work on the machine disturbed the times. "
    "At start: memory in use when training began."
)
ENVIRONMENT = {
    "device_name": "Processor",
    "device": "Device",
    "threads": "Threads",
    "platform": "Platform",
    "python": "Python",
    "torch": "PyTorch",
    "lightning": "Lightning",
    "randbp": "randbp",
}


def write_page(comparison: Comparison, path: Path, title: str) -> None:
    """Write the comparison as a self-contained HTML page, completely or not at all."""
    write_text(path, make_page(comparison, title))


def make_page(comparison: Comparison, title: str) -> str:
    """Make the page as a string: table, plots, methods of measurement, runs, settings and environment."""
    title = printable(title)
    heading, about = f"<p class=kicker>randbp report</p><h1>{escape(title)}</h1>", facts(_facts(comparison))
    if preface := comparison.results.preface:
        heading = f"<header>{heading}</header>{preface}<h2>Keep rates</h2>{about}"
    else:
        heading = f"<header>{heading}{about}</header>"
    sections = [
        heading,
        _lead(comparison),
        _problems(comparison),
        make_table(comparison).as_html() if comparison.groups else "",
        paragraphs("note", notes(comparison)),
        figures("two", filter(None, (accuracy_plot(comparison), loss_plot(comparison)))),
        figures("three", cost_plots(comparison)),
        figures("two", pareto_plots(comparison)),
        "<h2>How it was measured</h2>" + definitions(MEASURED),
        "<h2>Runs</h2>" + _runs_table(comparison).as_html() + paragraphs("note", [RUNS_NOTE]),
        _settings(comparison) if comparison.groups else "",
        "<h2>Environment</h2>" + definitions(_environment(comparison.runs)),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · randbp report</title><style>{STYLE}</style>"
        f"<main>{''.join(sections)}</main></html>\n"
    )


def _facts(comparison: Comparison) -> list[str]:
    """Model, data and length of the training, where all runs agree; and when."""
    runs = comparison.runs
    found = []
    for key, form in (("model", "{}"), ("data", "{}"), ("parameters", "{:,} parameters"), ("batch_size", "batch {}")):
        values = [getattr(run.summary.run, key, None) for run in runs]
        value = values[0]
        if value is not None and all(other == value for other in values):
            found.append(form.format(value.rpartition(".")[2] if isinstance(value, str) else value))
    epochs = {run.summary.progress.epochs for run in runs if run.finished}
    if len(epochs) == 1 and (most := epochs.pop()) is not None:
        found.append(f"{most} epochs")
    found.append(f"{len(runs)} run{'s' if len(runs) > 1 else ''}")
    days = [started.date() for run in runs if (started := run.summary.started)]
    return [*found, f"{min(days).day} {min(days):%B %Y}"] if days else found


def _lead(comparison: Comparison) -> str:
    """A sentence on the gains of the smallest keep rate, for the most accurate estimator if there are several."""
    groups = [g for g in comparison.groups if g.finished and not g.exact and comparison.exact(g)]
    if not groups:
        return ""
    name = comparison.accuracy or ""

    def rank(group: Group) -> tuple[float, float]:
        accuracy = group.metric(name)
        return group.keep, -accuracy.mean if accuracy and isfinite(accuracy.mean) else 0.0

    group = min(groups, key=rank)
    gains = (
        ("holds <b>{}</b> the bytes for backward", comparison.ratio(group, lambda g: g.cost("held_bytes"))),
        ("takes <b>{}</b> the time", comparison.ratio(group, lambda g: g.cost("step_seconds", trusted=True))),
    )
    parts = [form.format(ratio(value)) for form, value in gains if value is not None]
    if not parts:
        return ""
    which = f"With {escape(comparison.label(group))} at" if wants_labels(comparison) else "At"
    rate = f"a mean keep rate of {group.keep:.3g}" if group.leading.by_layer else f"keep rate {group.leading.rate}"
    text = f"{which} {rate} a training step {' and '.join(parts)} of exact backpropagation"
    exact = comparison.exact(group)
    if exact and (ours := group.metric(name)) and (theirs := exact.metric(name)):
        percents = [quantity(statistic.mean, None, PERCENT) for statistic in (ours, theirs)]
        text += f"; {escape(accuracy_name(comparison))} is <b>{percents[0]}</b> against {percents[1]}"
    return f"<p class=lead>{text}.</p>"


def _problems(comparison: Comparison) -> str:
    """The runs that did not finish, and the files that could not be read."""
    unfinished = [(run.name, run.problem or "") for run in comparison.problems]
    unread = [(printable(str(one.path)), one.what) for one in comparison.results.damaged]
    text = ""
    for found, noun, one, more in (
        (unfinished, "run", "does not count", "do not count"),
        (unread, "file", "was left out", "were left out"),
    ):
        many = "s" if len(found) > 1 else ""
        what = f"{len(found)} {noun}{many} {'did not finish' if noun == 'run' else 'could not be read'}"
        items = "".join(f"<li><code>{escape(name)}</code> {escape(why)}</li>" for name, why in found)
        text += f"<aside><p>{what} and {more if many else one}:</p><ul>{items}</ul></aside>" if found else ""
    return text


def _runs_table(comparison: Comparison) -> Table:
    columns: dict[str, Callable[[Run], Any]] = {
        "seed": lambda run: run.summary.run and run.summary.run.seed,
        "epochs": lambda run: run.summary.progress.epochs,
        accuracy_name(comparison): lambda run: _measured(run.metrics.get(comparison.accuracy or ""), PERCENT),
        "step": lambda run: _measured(run.cost("step_seconds"), SECONDS),
        "quartiles": _quartiles,
        "timed": lambda run: _measured(run.cost("steps_timed"), "{:.0f}"),
        "waiting": lambda run: _measured(run.cost("waiting_threads"), "{:.2f}"),
        "held": lambda run: _measured(run.cost("held_bytes"), BYTES),
        "peak": lambda run: _measured(run.cost("peak_bytes"), BYTES),
        "at start": lambda run: _measured(run.cost("start_bytes"), BYTES),
        "training": lambda run: _measured(run.summary.fit_seconds, SECONDS),
    }
    rows = []
    for run in comparison.runs:
        values = (value(run) for value in columns.values())
        texts = [run.name, *(MISSING if value is None else str(value) for value in values)]
        rows.append(("" if run.finished else "failed", [Cell(text) for text in texts]))
    return Table("runs", (Column("run", "code"), *map(Column, columns)), rows)


def _measured(value: float | None, form: Sequence[Unit] | str) -> str | None:
    if value is None:
        return None
    return form.format(value) if isinstance(form, str) else quantity(value, None, form)


def _quartiles(run: Run) -> str | None:
    low, high = run.cost("step_seconds_q25"), run.cost("step_seconds_q75")
    return None if low is None or high is None else interval(low, high, SECONDS)


def _settings(comparison: Comparison) -> str:
    """The estimators of each group, and the configuration that all runs share."""
    vjps = (("weight_vjp", "Weight VJP"), ("input_vjp", "Input VJP"))
    runs = [run for group in comparison.groups for run in group.runs]
    text = "<h2>Settings</h2>" + definitions(
        (name, ", ".join(sorted({_estimator(run, vjp) for run in runs}))) for vjp, name in vjps
    )
    if configs := [run.config for run in comparison.runs if run.config]:
        shared = {key: value for key, value in configs[0].items() if all(c.get(key) == value for c in configs)}
        rows = [("", [Cell(key), Cell(value)]) for key, value in shared.items()]
        table = Table("config", (Column("", "code"), Column("", "text")), rows).as_html()
        text += f"<details><summary>Configuration that all runs share</summary>{table}</details>"
    return text


def _estimator(run: Run, vjp: str) -> str:
    estimate = run.estimate(vjp)
    if estimate.keep == 1:
        return "exact"
    return f"{estimate.name}({', '.join(f'{key}={value}' for key, value in estimate.options)})"


def _environment(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found = []
    for key, name in ENVIRONMENT.items():
        if values := {printable(str(run.summary.environment.get(key) or "")) for run in runs} - {""}:
            found.append((name, ", ".join(sorted(values))))
    return found
