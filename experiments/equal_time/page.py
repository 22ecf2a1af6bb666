"""A figure and a page of the accuracies against seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.gradient_error.plot import STYLE
from experiments.pages import as_html
from experiments.short_training import Row, paired_difference
from randbp.diagnostics import describe_environment
from randbp.diagnostics.significance import mean_interval

from .settings import EXACT, FEWER_IMAGES, FEWER_STEPS, HALF

COLOURS = {"exact": "#222222", "Importance": "#D55E00", "Spatial": "#0072B2", "Projection": "#CC79A7"}
OTHERS = "#009E73"
MARKERS = "osv^D<>Ph*Xpd"


def write_page(
    folder: Path,
    network: str,
    options: Mapping[str, Any],
    rows: Sequence[Row],
    costs: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Write ``NETWORK.md`` with its figure; the lines of its table."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["setting"], {})[row["seed"]] = row
    seconds = {name: _seconds(name, runs, costs) for name, runs in found.items()}
    table = [
        "| setting | seconds | over exact | peak of a step, MB | accuracy in %, 95 % interval | points from exact |",
        "|---|---|---|---|---|---|",
        *(_line(name, runs, seconds, costs, found[EXACT]) for name, runs in found.items()),
    ]
    _figure(folder, network, found, seconds, costs)
    verdict = [_against(found, name) for name in (FEWER_IMAGES, FEWER_STEPS) if name in found and HALF in found]
    told = ", ".join(f"{name} {value}" for name, value in options.items())
    environment = ", ".join(f"{name} {value}" for name, value in describe_environment(torch.device("cpu")).items())
    (folder / f"{network}.md").write_text(
        "\n".join(
            [
                f"# Accuracy at equal time: {network} on Fashion-MNIST",
                "",
                f"`python -m experiments equal-time --network {network}`: {told}. {environment}",
                "",
                "Seconds are steps times the median of a step; steps of all settings were timed in turn, in one run.",
                "",
                f"![accuracy against seconds]({network}.png)",
                "",
                *table,
                "",
                *verdict,
                "",
            ]
        )
    )
    page = folder / f"{network}.md"
    return [*table, *verdict, f"written to {page}", f"written to {as_html(page)}"]


def _seconds(name: str, runs: Mapping[int, Row], costs: Mapping[str, Mapping[str, float]]) -> float:
    """Of a training; a cut batch takes the time that it was cut to."""
    steps = next(iter(runs.values()))["steps"]
    timed = {FEWER_IMAGES: HALF, FEWER_STEPS: EXACT}.get(name, name)
    return float(steps * costs[timed]["seconds"])


def _percent(runs: Mapping[int, Row]) -> dict[int, float]:
    return {seed: 100 * row["accuracy"] for seed, row in runs.items()}


def _line(
    name: str,
    runs: Mapping[int, Row],
    seconds: Mapping[str, float],
    costs: Mapping[str, Mapping[str, float]],
    exact: Mapping[int, Row],
) -> str:
    values = _percent(runs)
    spread = ""
    if len(values) > 1:
        interval = mean_interval(torch.tensor(list(values.values())), 0.95)
        spread = f" ({interval.low:.2f} to {interval.high:.2f})"
    peak = f"{costs[name]['bytes'] / 1e6:.1f}" if name in costs else ""
    return (
        f"| {name} | {seconds[name]:.1f} | {seconds[name] / seconds[EXACT]:.2f} | {peak} "
        f"| {mean(values.values()):.2f}{spread} | {'' if name == EXACT else _difference(values, _percent(exact))} |"
    )


def _difference(values: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Seed by seed."""
    found = paired_difference(values, others)
    if found is None:
        return "".join(f"{values[seed] - others[seed]:+.2f}" for seed in values.keys() & others.keys())
    interval, p, _ = found
    return f"{interval.estimate:+.2f} ({interval.low:+.2f} to {interval.high:+.2f}), p = {p:.3f}"


def _against(found: Mapping[str, Mapping[int, Row]], rival: str) -> str:
    return f"{HALF} less *{rival}*: {_difference(_percent(found[HALF]), _percent(found[rival]))} points."


def _figure(
    folder: Path,
    network: str,
    found: Mapping[str, Mapping[int, Row]],
    seconds: Mapping[str, float],
    costs: Mapping[str, Mapping[str, float]],
) -> None:
    """Accuracy against seconds, with intervals over the seeds; bytes in the legend."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": network}):
        figure = Figure(figsize=(8.2, 4.4), layout="constrained")
        panel, ends = figure.subplots(), []
        for number, (name, runs) in enumerate(sorted(found.items(), key=lambda item: seconds[item[0]])):
            values = torch.tensor(list(_percent(runs).values()))
            error = 0.0
            if len(values) > 1:
                interval = mean_interval(values, 0.95)
                error = interval.high - interval.estimate
            if len(values) > 4:  # intervals of fewer seeds may be much wider than all differences
                ends += [float(values.mean()) - error, float(values.mean()) + error]
            colour = next((colour for start, colour in COLOURS.items() if name.startswith(start)), OTHERS)
            label = name if name not in costs else f"{name}, {costs[name]['bytes'] / 1e6:.0f} MB"
            panel.errorbar(
                seconds[name], float(values.mean()), error, color=colour, marker=MARKERS[number % len(MARKERS)],
                label=label, linestyle="", capsize=2.5, elinewidth=1,
                markerfacecolor=colour if name in (EXACT, HALF) else "white",
            )  # fmt: skip
        means = [mean(_percent(runs).values()) for runs in found.values()]
        margin = max(0.5, (max(means) - min(means)) / 3)
        low, high = min([min(means) - margin, *ends]), max([max(means) + margin, *ends])
        panel.set_ylim(low - (high - low) / 50, high + (high - low) / 50)
        times = [seconds[name] for name in found]
        if max(times) > 4 * min(times):
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            panel.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else ""))
        panel.set_xlabel("seconds of a training")
        panel.set_ylabel("test accuracy in %")
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
        for suffix in ("png", "svg"):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"{network}.{suffix}", dpi=200, metadata=metadata)
