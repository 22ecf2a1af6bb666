"""Tables, a figure and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from experiments.gradient_error.plot import STYLE
from experiments.short_training import Row
from randbp.diagnostics import describe_environment
from randbp.diagnostics.significance import mean_interval

from .optimizers import OPTIMIZERS, name_of
from .step_costs import FIRST_LAYER, NETWORKS, PUBLISHED

CHOOSERS = 2
"""Seeds that choose learning rates; the others are reported."""

COLOURS = ("#222222", "#999999", "#D55E00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#E69F00", "#8C564B")


def write_page(
    folder: Path, options: Mapping[str, Any], costs: Sequence[Row], rows: Sequence[Row], best: Mapping[str, str]
) -> list[str]:
    """Write ``second_order.md`` with its figure; the lines of its tables.

    Args:
        folder: Where to.
        options: Of the trainings.
        costs: Of steps.
        rows: Trainings at the best learning rates.
        best: By optimiser the setting with the best one.
    """
    rows = [row for row in rows if row["seed"] >= CHOOSERS] or rows
    tables = [*_steps(costs), "", *_trainings(rows, best)]
    _figure(folder, rows, best)
    told = ", ".join(f"{name} {value}" for name, value in options.items())
    environment = ", ".join(f"{name} {value}" for name, value in describe_environment(torch.device("cpu")).items())
    page = [
        "# What second-order steps cost, and what they are worth",
        "",
        f"`python -m experiments second-order`: {told}. {environment}",
        "",
        "Time and peak memory are ratios to SGD's in the same run; factors are made in every tenth step, inverses in "
        "every hundredth. Published figures are of full-size images on an A40 GPU.",
        "",
        *tables,
        "",
        f"Each optimiser at the best of its learning rates by {CHOOSERS} trainings with other seeds; accuracies with "
        "95 % intervals. Seconds are processor time, evaluation left out.",
        "",
        "![loss and accuracy against steps and seconds](second_order.png)",
        "",
    ]
    (folder / "second_order.md").write_text("\n".join(page))
    return [*tables, f"written to {folder / 'second_order.md'}"]


def best_settings(rows: Sequence[Row]) -> dict[str, str]:
    """Of each optimiser the setting with the best mean accuracy with the first seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["seed"] < CHOOSERS:
            found.setdefault(row["setting"], []).append(row["accuracy"])
    best: dict[str, str] = {}
    for setting, accuracies in found.items():
        name = name_of(setting)
        if name not in best or mean(accuracies) > mean(found[best[name]]):
            best[name] = setting
    return best


def _steps(costs: Sequence[Row]) -> list[str]:
    lines = ["| network | optimizer | time over SGD's | published | peak memory over SGD's | published |"]
    lines.append("|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for row in costs:
        if "network" not in row["run"]:
            first = row["costs"]
            continue
        network, found = row["run"]["network"], row["costs"]
        for name, cost in found.items():
            known = NETWORKS[network].published if name == PUBLISHED else None
            published = [f"{ratio:.2f}" for ratio in known] if known else ["", ""]
            ratios = [f"{cost[what] / found['SGD'][what]:.2f}" for what in ("seconds", "bytes")]
            lines.append(f"| {network} | {name} | {ratios[0]} | {published[0]} | {ratios[1]} | {published[1]} |")
    if first:
        told = ", ".join(f"{ratio}x {name}" for name, ratio in FIRST_LAYER.items())
        ratio = first["unfolded"] / first["randbp"]
        lines += ["", f"KFAC-reduce of ConvNeXt-Base's first layer: {ratio:.1f}x faster than unfolding ({told})."]
    return lines


def _trainings(rows: Sequence[Row], best: Mapping[str, str]) -> list[str]:
    lines = [
        "| optimizer | learning rate | accuracy in % | loss | seconds | learning rates tried |",
        "|---|---|---|---|---|---|",
    ]
    for name, setting in best.items():
        runs = [row for row in rows if row["setting"] == setting]
        accuracy, loss, seconds = (mean(row[key] for row in runs) for key in ("accuracy", "loss", "seconds"))
        tried = ", ".join(f"{rate:g}" for rate in OPTIMIZERS[name][1])
        rate = setting.rpartition(", ")[2]
        reached = f"{100 * accuracy:.2f}"
        if len(runs) > 1:
            interval = mean_interval(torch.tensor([100 * row["accuracy"] for row in runs]), 0.95)
            reached += f" ({interval.low:.2f} to {interval.high:.2f})"
        lines.append(f"| {name} | {rate} | {reached} | {loss:.3f} | {seconds:.1f} | {tried} |")
    return lines


def _figure(folder: Path, rows: Sequence[Row], best: Mapping[str, str]) -> None:
    """Loss and accuracy against steps and seconds, means over seeds."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "second-order"}):
        figure = Figure(figsize=(8.2, 5.6), layout="constrained")
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for (name, setting), colour in zip(best.items(), COLOURS, strict=False):
            curves = [row["curve"] for row in rows if row["setting"] == setting]
            points = [
                {key: mean(point[key] for point in same) for key in same[0]} for same in zip(*curves, strict=True)
            ]
            for line, what in zip(panels, ("loss", "accuracy"), strict=True):
                for panel, along in zip(line, ("step", "seconds"), strict=True):
                    x, y = ([point[key] for point in points] for key in (along, what))
                    panel.plot(x, y, color=colour, label=name if what == "loss" and along == "step" else None)
        for line, label in zip(panels, ("loss of the last steps", "test accuracy"), strict=True):
            line[0].set_ylabel(label)
        for panel, label in zip(panels[1], ("step", "seconds"), strict=True):
            panel.set_xlabel(label)
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
        for suffix in ("png", "svg"):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"second_order.{suffix}", dpi=200, metadata=metadata)
