"""Tables, a figure and a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from experiments.pages import as_html
from experiments.short_training import Row
from experiments.training_curve import draw_curves
from randbp.diagnostics import describe_environment
from randbp.diagnostics.significance import mean_interval

from .optimizers import OPTIMIZERS, name_of
from .step_costs import FIRST_LAYER, NETWORKS, PUBLISHED

CHOOSERS = 2
"""Seeds that choose learning rates; the others are reported."""


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
    tables = [*_steps(costs), "", *trainings_table(rows, best)]
    curves = {name: [row["curve"] for row in rows if row["setting"] == setting] for name, setting in best.items()}
    draw_curves(folder / "second_order", curves)
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
    return [*tables, f"written to {folder / 'second_order.md'}", f"written to {as_html(folder / 'second_order.md')}"]


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


def trainings_table(rows: Sequence[Row], best: Mapping[str, str]) -> list[str]:
    """Accuracy, loss and seconds of each optimiser at its best rate, means over the seeds of these rows."""
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
