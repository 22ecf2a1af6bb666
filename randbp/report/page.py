"""The comparison as one self-contained HTML file."""

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from randbp.callbacks.files import write_text

from ..text.units import BYTES, PERCENT, SECONDS, interval, quantity, ratio
from .groups import Comparison, Group
from .methods_page import methods_facts, methods_part
from .plots import accuracy_plot, cost_plots, loss_plot
from .printable import printable
from .runs import Run
from .style import STYLE
from .table import COST_COLUMNS, MISSING, accuracy_name, measures, notes, wants_labels

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
    "<p class=note>Step: median time per step, with its quartiles over the timed steps. Waiting: threads that "
    "found no free processor, on average; far above zero, other work on the machine disturbed the times. "
    "At start: memory in use when training began.</p>"
)


def write_page(comparison: Comparison, path: Path, title: str) -> None:
    """Write the comparison as a self-contained HTML page, completely or not at all.

    Args:
        comparison: The comparison to show.
        path: The file.
        title: Heading of the page.
    """
    write_text(path, make_page(comparison, title))


def make_page(comparison: Comparison, title: str) -> str:
    """Make the page as a string: table, plots, methods of measurement, runs, settings and environment."""
    title = printable(title)
    heading, facts = f"<p class=kicker>randbp report</p><h1>{escape(title)}</h1>", _facts(comparison)
    if comparison.methods:
        methods = comparison.methods
        heading = f"<header>{heading}<p class=facts>{methods_facts(methods)}</p></header>{methods_part(methods)}"
        heading += f"<h2>Keep rates</h2><p class=facts>{facts}</p>"
    else:
        heading = f"<header>{heading}<p class=facts>{facts}</p></header>"
    sections = [
        heading,
        _lead(comparison),
        _problems(comparison),
        _main_table(comparison),
        "".join(f"<p class=note>{escape(note)}</p>" for note in notes(comparison)),
        _figures(comparison),
        "<h2>How it was measured</h2>" + _definitions(MEASURED),
        "<h2>Runs</h2>" + _runs_table(comparison) + RUNS_NOTE,
        _settings(comparison),
        "<h2>Environment</h2>" + _environment(comparison.runs),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · randbp report</title><style>{STYLE}</style>"
        f"<main>{''.join(section for section in sections if section)}</main></html>\n"
    )


def _facts(comparison: Comparison) -> str:
    """Model, data and length of the training, where all runs agree; and when."""
    runs = comparison.runs
    facts = []
    for key, form in (("model", "{}"), ("data", "{}"), ("parameters", "{:,} parameters"), ("batch_size", "batch {}")):
        values = [getattr(run.summary.run, key, None) for run in runs]
        value = values[0]
        if value is not None and all(other == value for other in values):
            facts.append(form.format(value.rpartition(".")[2] if isinstance(value, str) else value))
    epochs = {run.summary.progress.epochs for run in runs if run.finished}
    if len(epochs) == 1 and (most := epochs.pop()) is not None:
        facts.append(f"{most} epochs")
    facts.append(f"{len(runs)} run{'s' if len(runs) > 1 else ''}")
    days = [started.date() for run in runs if (started := run.summary.started)]
    facts += [f"{min(days).day} {min(days):%B %Y}"] if days else []
    return " <span>·</span> ".join(escape(fact) for fact in facts)


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
    exact = comparison.exact(group)
    assert exact is not None
    held = comparison.ratio(group, lambda g: g.cost("held_bytes"))
    time = comparison.ratio(group, lambda g: g.trusted_cost("step_seconds"))
    ours, theirs = group.metric(name), exact.metric(name)
    parts = []
    if held is not None:
        parts.append(f"holds <b>{ratio(held)}</b> the bytes for backward")
    if time is not None:
        parts.append(f"takes <b>{ratio(time)}</b> the time")
    if not parts:
        return ""
    which = f"With {escape(comparison.label(group))} at" if wants_labels(comparison) else "At"
    rate = f"a mean keep rate of {group.keep:.3g}" if group.by_layer else f"keep rate {group.rate}"
    text = f"{which} {rate} a training step {' and '.join(parts)} of exact backpropagation"
    if ours and theirs:
        percents = [quantity(statistic.mean, None, PERCENT) for statistic in (ours, theirs)]
        text += f"; {escape(accuracy_name(comparison))} is <b>{percents[0]}</b> against {percents[1]}"
    return f"<p class=lead>{text}.</p>"


def _problems(comparison: Comparison) -> str:
    text = ""
    if count := len(comparison.problems):
        items = [f"<code>{escape(run.name)}</code> {escape(run.problem or '')}" for run in comparison.problems]
        runs, do = ("runs", "do") if count > 1 else ("run", "does")
        text += _aside(f"{count} {runs} did not finish and {do} not count", items)
    if count := len(comparison.damaged):
        items = [f"<code>{escape(printable(str(one.path)))}</code> {escape(one.what)}" for one in comparison.damaged]
        text += _aside(
            f"{count} file{'s' if count > 1 else ''} could not be read and {'were' if count > 1 else 'was'} left out",
            items,
        )
    return text


def _aside(heading: str, items: Sequence[str]) -> str:
    return f"<aside><p>{heading}:</p><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul></aside>"


def _main_table(comparison: Comparison) -> str:
    if not comparison.groups:
        return ""
    labelled = wants_labels(comparison)
    several = any(len(group.runs) > 1 for group in comparison.groups) or bool(comparison.problems)
    head = ["Estimator"] * labelled + ["Keep rate"]
    measured = [accuracy_name(comparison), *(heading for _, heading, _ in COST_COLUMNS)]
    cells = "".join(f"<th{' class=text' if text == 'Estimator' else ''}>{text}</th>" for text in head)
    cells += "".join(f"<th colspan=2>{escape(text.capitalize())}</th>" for text in measured)
    rows = "".join(_main_row(comparison, group, labelled, several) for group in comparison.groups)
    return _scroll(
        f"<table class=main><thead><tr>{cells}{'<th>Runs</th>' * several}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _main_row(comparison: Comparison, group: Group, labelled: bool, several: bool) -> str:
    cells = f"<td class=text>{escape(comparison.label(group))}</td>" if labelled else ""
    cells += f"<td class=keep>{escape(group.rate)}</td>"
    for statistic, relation, units in measures(comparison, group):
        value = MISSING if statistic is None else quantity(statistic.mean, statistic.std, units)
        cells += f"<td>{escape(value)}</td><td class=ratio>{'' if relation is None else ratio(relation)}</td>"
    if several:
        whole = len(group.finished) == len(group.runs)
        cells += f"<td>{len(group.runs) if whole else f'{len(group.finished)} of {len(group.runs)}'}</td>"
    return f"<tr{' class=exact' if group.exact else ''}>{cells}</tr>"


def _figures(comparison: Comparison) -> str:
    large = [plot for plot in (accuracy_plot(comparison), loss_plot(comparison)) if plot]
    small = cost_plots(comparison)
    rows = [(large, "two"), (small, "three")]
    return "".join(
        f'<div class="figures {kind}">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'
        for plots, kind in rows
        if plots
    )


def _runs_table(comparison: Comparison) -> str:
    head = ["Run", "Seed", "Epochs", accuracy_name(comparison).capitalize(), "Step", "Quartiles"]
    head += ["Timed", "Waiting", "Held", "Peak", "At start", "Training"]
    cells = "".join(f"<th{' class=text' if index == 0 else ''}>{escape(text)}</th>" for index, text in enumerate(head))
    rows = "".join(_run_row(comparison, run) for run in comparison.runs)
    return _scroll(f"<table class=runs><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>")


def _run_row(comparison: Comparison, run: Run) -> str:
    def measured(value: float | None, units: Any) -> str:
        return MISSING if value is None else quantity(value, None, units)

    accuracy = run.metrics.get(comparison.accuracy or "")
    timed, waiting = run.cost("steps_timed"), run.cost("waiting_threads")
    low, high = run.cost("step_seconds_q25"), run.cost("step_seconds_q75")
    cells = [
        str(MISSING if run.seed is None else run.seed),
        str(MISSING if run.summary.progress.epochs is None else run.summary.progress.epochs),
        measured(accuracy, PERCENT),
        measured(run.cost("step_seconds"), SECONDS),
        MISSING if low is None or high is None else interval(low, high, SECONDS),
        MISSING if timed is None else f"{timed:.0f}",
        MISSING if waiting is None else f"{waiting:.2f}",
        measured(run.cost("held_bytes"), BYTES),
        measured(run.cost("peak_bytes"), BYTES),
        measured(run.cost("start_bytes"), BYTES),
        measured(run.summary.fit_seconds, SECONDS),
    ]
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return (
        f"<tr{'' if run.finished else ' class=failed'}><td class=text><code>{escape(run.name)}</code></td>{values}</tr>"
    )


def _settings(comparison: Comparison) -> str:
    """The estimators of each group, and the configuration that all runs share."""
    rows = [
        (name, sorted({_estimate(run, vjp) for group in comparison.groups for run in group.runs}))
        for vjp, name in (("weight_vjp", "Weight VJP"), ("input_vjp", "Input VJP"))
    ]
    if not comparison.groups:
        return ""
    text = "<h2>Settings</h2>" + _definitions((name, ", ".join(values)) for name, values in rows)
    configs = [run.config for run in comparison.runs if run.config]
    if configs:
        shared = {key: value for key, value in configs[0].items() if all(c.get(key) == value for c in configs)}
        body = "".join(
            f"<tr><td class=text><code>{escape(key)}</code></td><td class=text>{escape(value)}</td></tr>"
            for key, value in shared.items()
        )
        text += "<details><summary>Configuration that all runs share</summary>"
        text += _scroll(f"<table class=config><tbody>{body}</tbody></table>") + "</details>"
    return text


def _estimate(run: Run, vjp: str) -> str:
    estimate = run.estimate(vjp)
    if estimate.keep == 1:
        return "exact"
    return f"{estimate.name}({', '.join(f'{key}={value}' for key, value in estimate.options)})"


def _environment(runs: Sequence[Run]) -> str:
    names = {
        "device_name": "Processor",
        "device": "Device",
        "threads": "Threads",
        "platform": "Platform",
        "python": "Python",
        "torch": "PyTorch",
        "lightning": "Lightning",
        "randbp": "randbp",
    }
    rows = []
    for key, name in names.items():
        values = {printable(str(run.summary.environment.get(key) or "")) for run in runs} - {""}
        if values:
            rows.append((name, ", ".join(sorted(values))))
    return _definitions(rows)


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _scroll(table: str) -> str:
    return f"<div class=scroll>{table}</div>"
