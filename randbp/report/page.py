"""The comparison as one HTML file that needs nothing else to be read."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from randbp.callbacks.files import write_text

from .groups import Comparison, Group
from .plots import accuracy_plot, cost_plots, loss_plot
from .runs import Run
from .style import STYLE
from .table import COST_COLUMNS, MISSING, accuracy_name, measures, notes, wants_labels
from .units import BYTES, PERCENT, SECONDS, interval, keep_rate, quantity, ratio

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
    """Write the comparison as a self-contained HTML page, whole or not at all.

    Args:
        comparison: What to show.
        path: The file.
        title: Heading of the page.
    """
    write_text(path, make_page(comparison, title))


def make_page(comparison: Comparison, title: str) -> str:
    """The page as a string: table, plots, what was measured how, runs, settings and environment."""
    sections = [
        f"<header><p class=kicker>randbp report</p><h1>{escape(title)}</h1>"
        f"<p class=facts>{_facts(comparison)}</p></header>",
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
        values = {run.summary.get("run", {}).get(key) for run in runs}
        if len(values) == 1 and (value := values.pop()) is not None:
            facts.append(form.format(value.rpartition(".")[2] if isinstance(value, str) else value))
    epochs = {run.summary.get("progress", {}).get("epochs") for run in runs if run.finished}
    if len(epochs) == 1:
        facts.append(f"{epochs.pop()} epochs")
    facts.append(f"{len(runs)} run{'s' if len(runs) > 1 else ''}")
    days = sorted({str(run.summary["started"])[:10] for run in runs if run.summary.get("started")})
    facts += [_day(days[0])] if days else []
    return " <span>·</span> ".join(escape(fact) for fact in facts)


def _day(text: str) -> str:
    day = datetime.fromisoformat(text)
    return f"{day.day} {day:%B %Y}"


def _lead(comparison: Comparison) -> str:
    """What the smallest keep rate brings, in a sentence; of several estimators the most accurate one."""
    groups = [g for g in comparison.groups if g.finished and not g.exact and comparison.exact(g)]
    if not groups:
        return ""
    name = comparison.accuracy or ""

    def rank(group: Group) -> tuple[float, float]:
        accuracy = group.metric(name)
        return group.keep, -accuracy.mean if accuracy else 0.0

    group = min(groups, key=rank)
    exact = comparison.exact(group)
    assert exact is not None
    held = comparison.ratio(group, lambda g: g.cost("held_bytes"))
    time = comparison.ratio(group, lambda g: g.cost("step_seconds"))
    ours, theirs = group.metric(name), exact.metric(name)
    parts = []
    if held is not None:
        parts.append(f"holds <b>{ratio(held)}</b> the bytes for backward")
    if time is not None and not set(comparison.disturbed) & {*group.runs, *exact.runs}:
        parts.append(f"takes <b>{ratio(time)}</b> the time")
    if not parts:
        return ""
    which = f"With {escape(comparison.label(group))} at" if wants_labels(comparison) else "At"
    text = f"{which} keep rate {keep_rate(group.keep)} a training step {' and '.join(parts)} of exact backpropagation"
    if ours and theirs:
        percents = [quantity(statistic.mean, None, PERCENT) for statistic in (ours, theirs)]
        text += f"; {escape(accuracy_name(comparison))} is <b>{percents[0]}</b> against {percents[1]}"
    return f"<p class=lead>{text}.</p>"


def _problems(comparison: Comparison) -> str:
    if not comparison.problems:
        return ""
    count = len(comparison.problems)
    items = "".join(
        f"<li><code>{escape(run.name)}</code> {escape(run.problem or '')}</li>" for run in comparison.problems
    )
    heading = f"{count} run{'s' if count > 1 else ''} did not finish and {'do' if count > 1 else 'does'} not count"
    return f"<aside><p>{heading}:</p><ul>{items}</ul></aside>"


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
    cells += f"<td class=keep>{keep_rate(group.keep)}</td>"
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
        str(run.summary.get("progress", {}).get("epochs", MISSING)),
        measured(accuracy, PERCENT),
        measured(run.cost("step_seconds"), SECONDS),
        MISSING if low is None or high is None else interval(low, high, SECONDS),
        MISSING if timed is None else f"{timed:.0f}",
        MISSING if waiting is None else f"{waiting:.2f}",
        measured(run.cost("held_bytes"), BYTES),
        measured(run.cost("peak_bytes"), BYTES),
        measured(run.cost("start_bytes"), BYTES),
        measured(run.summary.get("fit_seconds"), SECONDS),
    ]
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return (
        f"<tr{'' if run.finished else ' class=failed'}><td class=text><code>{escape(run.name)}</code></td>{values}</tr>"
    )


def _settings(comparison: Comparison) -> str:
    """Estimators of each group, and the configuration that all runs share."""
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
        values = {str(run.summary.get("environment", {}).get(key) or "") for run in runs} - {""}
        if values:
            rows.append((name, ", ".join(sorted(values))))
    return _definitions(rows)


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows) + "</dl>"


def _scroll(table: str) -> str:
    return f"<div class=scroll>{table}</div>"
