"""Times of estimated weight and input VJPs, layer by layer, over keep rates, beside exact ones and a bound.

``python -m experiments vjp-time`` times PyTorch's exact VJPs and estimates with all that belongs to them: drawing,
choosing what is held, and the product. All take turns. The bound is the keep rate's share of the exact time: that of
the multiply-adds which an estimate cannot leave out, at the speed of PyTorch's kernel. Rows that are written already
are not measured again, so a long measurement may be cut into several calls.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.estimators import RATES, timed_vjps
from bench.figures import BLUE, GREEN, GREY, ORANGE, PINK, panels, ticks
from bench.harness import geometric_mean
from bench.layers import NETWORKS, layers
from bench.place import Place
from experiments.pages import table, write_pages
from experiments.runs_once import Row, runs_once
from randbp import Batch, Channels, Importance, Spatial
from randbp.estimators import Estimator

QUICK = ("all-cnn-c.1,all-cnn-c.4,all-cnn-c.6,resnet-18.4,resnet-18.7,resnet-18.10", 2.0)
KINDS: dict[str, dict[str, type[Estimator]]] = {
    "weight": {"Spatial": Spatial, "Importance": Importance, "Batch": Batch},
    "input": {"Spatial": Spatial, "Importance": Importance, "Channels": Channels},
}
LOOKS = {"Spatial": (GREEN, "o"), "Importance": (ORANGE, "s"), "Batch": (BLUE, "D"), "Channels": (PINK, "v")}


def main(argv: Sequence[str]) -> int:
    """Time what is missing, and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m experiments vjp-time", description=__doc__)
    parser.add_argument("--layers", default="", help=f"of {', '.join(NETWORKS)}; such as vgg-19,resnet-18.3 (all)")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per layer and VJP (default: 3)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further row after so many")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]}, {QUICK[1]:g} seconds each")
    parser.add_argument("--output", type=Path, default=Path("runs/vjp_time"), help="folder (default: runs/vjp_time)")
    options = parser.parse_args(argv)
    pattern, budget = QUICK if options.quick else (options.layers, options.budget)
    found = {layer.name: layer for layer in layers(pattern)}
    common = {"budget": budget, "threads": torch.get_num_threads()}
    start = time.perf_counter()

    def do(run: Mapping[str, Any]) -> Row:
        torch.manual_seed(0)
        kinds = KINDS[run["vjp"]]
        estimators = {f"{name} {keep:g}": kinds[name](keep=keep) for name in kinds for keep in RATES}
        timings = timed_vjps(found[run["layer"]], run["vjp"], estimators, budget, Place())
        seconds = {name: timing.seconds for name, timing in timings.items()}
        return {"seconds": seconds, "noise": max(timing.noise for timing in timings.values())}

    rows: list[Row] = []
    for name, vjp in product(found, KINDS):
        if time.perf_counter() - start > options.seconds:
            print("cut short: the same command goes on with what is missing")
            break
        rows += runs_once(options.output / "times.jsonl", [{"layer": name, "vjp": vjp} | common], do, _told)
    figure(options.output, rows)
    blocks = [
        "Time of an estimated VJP over the exact one's, drawing included. The bound is the keep rate: the share of "
        "the multiply-adds that remain; an estimator that multiplies in bfloat16, as Importance does where that is "
        "faster, may go below it.",
        "![For weight and input VJPs: time over exact against the keep rate, one thin line per layer and estimator, "
        "thick ones for geometric means, and the bound](vjp_time.png)",
        *(f"**{vjp.capitalize()} VJP**\n\n{_table(rows, vjp)}" for vjp in KINDS),
    ]
    command = "vjp-time" + (" --quick" if options.quick else "")
    for line in [*blocks[2:], *write_pages(options.output / "vjp_time.md", "VJP times", command, common, blocks)]:
        print(line)
    return 0


def _told(row: Row) -> str:
    return f"{row['run']['layer']}, {row['run']['vjp']} VJP: {1e3 * row['seconds']['exact']:.2f} ms exactly"


def _ratios(rows: Sequence[Row], vjp: str, name: str) -> list[list[float]]:
    """Of each layer the times over the exact one's at all rates."""
    found = [row["seconds"] for row in rows if row["run"]["vjp"] == vjp]
    return [[seconds[f"{name} {keep:g}"] / seconds["exact"] for keep in RATES] for seconds in found]


def _table(rows: Sequence[Row], vjp: str) -> str:
    heads = [f"{name}, {Fraction(keep)}" for name in KINDS[vjp] for keep in RATES]
    lines = []
    for row in rows:
        if row["run"]["vjp"] == vjp:
            ratios = [f"{each:.2f}" for name in KINDS[vjp] for each in _ratios([row], vjp, name)[0]]
            lines.append([row["run"]["layer"], f"{1e3 * row['seconds']['exact']:.2f}", *ratios, f"{row['noise']:.0%}"])
    means = [
        f"{geometric_mean(each):.2f}" for name in KINDS[vjp] for each in zip(*_ratios(rows, vjp, name), strict=True)
    ]
    lines.append(["geometric mean", "", *means, ""])
    lines.append(["bound", "", *[f"{keep:.2f}" for _ in KINDS[vjp] for keep in RATES], ""])
    return table(["layer", "exact, ms", *heads, "noise"], lines)


def figure(folder: Path, rows: Sequence[Row]) -> None:
    """Times over exact against keep rates: a thin line per layer, a thick one for the geometric mean, and the bound."""
    with panels("vjp_time", 2, (7.6, 4.4), [], folder) as (drawn, axes):
        axes[1].sharey(axes[0])
        for panel, vjp in zip(axes, KINDS, strict=True):
            for name in KINDS[vjp]:
                colour, marker = LOOKS[name]
                each = _ratios(rows, vjp, name)
                for ratios in each:
                    panel.plot(RATES, ratios, color=colour, linewidth=0.6, alpha=0.4)
                means = [geometric_mean(at) for at in zip(*each, strict=True)]
                panel.plot(RATES, means, color=colour, marker=marker, markersize=5, linewidth=1.8, label=name)
            panel.axhline(1, color=GREY, linewidth=0.9, linestyle="--", label="exact")
            line = np.geomspace(min(RATES), max(RATES))
            panel.plot(line, line, color="#222222", linewidth=1.2, linestyle=":", label="bound: multiply-adds")
            panel.set_title(f"{vjp.capitalize()} VJP")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            ticks(panel.xaxis, RATES, fractions=True)
            ticks(panel.yaxis, [2.0**power for power in range(-4, 4)], fractions=True)
            panel.set_xlabel("keep rate")
        axes[0].set_ylabel("time over exact")
        handles = {
            label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        order = [*dict.fromkeys(name for kinds in KINDS.values() for name in kinds), "exact", "bound: multiply-adds"]
        drawn.legend([handles[name] for name in order], order, loc="outside lower center", ncols=3)
