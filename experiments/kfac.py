"""Input factors of KFAC-reduce and KFAC-expand, per layer: time and memory beside unfolding.

``python -m experiments kfac`` measures randbp's contraction, unfolding with a matrix product, and einconv where it is
installed, on the convolutions of five networks (``python -m bench kfac-reduce``). Times are medians of rounds in which
all take turns; memory is the peak beyond the result, over the bytes of the layer's input. Rows that are written already
are not measured again.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.contractions import measure
from bench.figures import BLUE, GREY, ORANGE, SKY, panels, ticks
from bench.harness import geometric_mean
from bench.layers import NETWORKS, layers
from bench.place import Place
from experiments.pages import table, write_pages
from experiments.runs_once import Row, runs_once

QUICK = ("all-cnn-c", 0.5)
APPROXIMATIONS = ("reduce", "expand")
PUBLISHED = 4.5
"""How many times faster than unfolding a KFAC-reduce factor is at most in the literature, on a GPU."""

SOURCE = "F. Dangel, Convolutions and more as einsum, 2023, arXiv:2307.02275"


def main(argv: Sequence[str]) -> int:
    """Measure what is missing, and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m experiments kfac", description=__doc__)
    parser.add_argument("--layers", default="", help=f"of {', '.join(NETWORKS)}; such as vgg-19,resnet-18.3 (all)")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per layer (default: 3)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]}, {QUICK[1]:g} seconds each")
    parser.add_argument("--output", type=Path, default=Path("runs/kfac"), help="folder (default: runs/kfac)")
    options = parser.parse_args(argv)
    pattern, budget = QUICK if options.quick else (options.layers, options.budget)
    found = {layer.name: layer for layer in layers(pattern)}
    common = {"budget": budget, "threads": torch.get_num_threads()}
    wanted = [{"approximation": each, "layer": name} | common for name in found for each in APPROXIMATIONS]

    def do(run: Mapping[str, Any]) -> Row:
        torch.manual_seed(0)
        return measure(f"kfac-{run['approximation']}", found[run["layer"]], budget, Place())

    rows = runs_once(options.output / "kfac.jsonl", wanted, do, _told)
    figure(options.output, rows)
    blocks = [
        "How many times faster than a peer randbp makes the input factor of a layer, and memory beyond the result "
        f"over the input's bytes. Published: KFAC-reduce up to {PUBLISHED} times faster than unfolding, on a GPU "
        f"({SOURCE}).",
        "![For each layer: time of unfolding over randbp's, and memory of both, of KFAC-reduce and KFAC-expand]"
        "(kfac.png)",
        *(f"**KFAC-{each}**: {_mean(rows, each)}\n\n{_table(rows, each)}" for each in APPROXIMATIONS),
    ]
    command = "kfac" + (" --quick" if options.quick else "")
    for line in [*blocks[2:], *write_pages(options.output / "kfac.md", "K-FAC's factors", command, common, blocks)]:
        print(line)
    return 0


def _of(rows: Sequence[Row], approximation: str) -> list[Row]:
    return [row for row in rows if row["run"]["approximation"] == approximation]


def _told(row: Row) -> str:
    return f"{row['layer']}, {row['run']['approximation']}: {row['unfold'] / row['randbp']:.2f}x of unfolding"


def _mean(rows: Sequence[Row], approximation: str) -> str:
    ratios = [row["unfold"] / row["randbp"] for row in _of(rows, approximation)]
    published = f"; published: up to {PUBLISHED}" if approximation == "reduce" else ""
    return (
        f"over unfolding {geometric_mean(ratios):.2f} times on geometric average, {min(ratios):.2f} to "
        f"{max(ratios):.2f}{published}"
    )


def _table(rows: Sequence[Row], approximation: str) -> str:
    lines = []
    for row in _of(rows, approximation):
        peer = f"{row['einconv'] / row['randbp']:.1f}" if "einconv" in row else ""
        noise = max(row["randbp_noise"], row["unfold_noise"])
        lines.append(
            [row["layer"], f"{1e3 * row['randbp']:.2f}", f"{row['unfold'] / row['randbp']:.1f}", peer, f"{noise:.0%}"]
            + [f"{row[key]:.2f}" for key in ("extra_memory", "unfold_memory")]
        )
    columns = ["layer", "ms", "unfolding over it", "einconv over it", "noise", "memory", "of unfolding"]
    return table(columns, lines)


def figure(folder: Path, rows: Sequence[Row]) -> None:
    """Speed over unfolding, and memory of both, layer by layer."""
    with panels("kfac", 4, (9.2, max(2.4, 1.1 + 0.085 * len(rows))), [], folder) as (drawn, axes):
        for number, approximation in enumerate(APPROXIMATIONS):
            found = _of(rows, approximation)
            names, places = [row["layer"] for row in found], range(len(found), 0, -1)
            time, memory = axes[2 * number : 2 * number + 2]
            mark = partial(time.plot, linestyle="", markersize=4.5)
            mark([row["unfold"] / row["randbp"] for row in found], places, marker="o", color=BLUE, label="unfolding")
            peers = [
                (row["einconv"] / row["randbp"], at) for row, at in zip(found, places, strict=True) if "einconv" in row
            ]
            if peers:
                mark(*zip(*peers, strict=True), marker="D", color=SKY, markerfacecolor="white", label="einconv")
            time.axvline(1, color=GREY, linewidth=0.9)
            if approximation == "reduce":
                label = f"published over unfolding: up to {PUBLISHED}"
                time.axvline(PUBLISHED, color=ORANGE, linewidth=1.2, linestyle="--", label=label)
            time.set_xlabel("time of a peer / ours")
            least = 1e-3
            for key, colour, marker, label in (
                ("extra_memory", "#222222", "s", "memory of randbp"), ("unfold_memory", BLUE, "o", None),
            ):  # fmt: skip
                memory.plot(
                    [max(least, row[key]) for row in found], places, linestyle="", marker=marker, color=colour,
                    markersize=4.5, label=label,
                )  # fmt: skip
            memory.set_xlabel("memory / input")
            for panel in (time, memory):
                panel.set_xscale("log")
                panel.set_ylim(0.3, len(found) + 0.7)
                panel.set_yticks(places, names if panel is axes[0] else [""] * len(names), fontsize=7)
            time.set_title(f"KFAC-{approximation}")
            ticks(time.xaxis, [10.0**power for power in range(-1, 4)])
            ticks(memory.xaxis, [10.0**power for power in range(-3, 3)])
        handles = [part for panel in axes[:2] for part in zip(*panel.get_legend_handles_labels(), strict=True)]
        drawn.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=len(handles))
