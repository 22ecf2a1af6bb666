"""Variance against time and against bytes as a figure, with lines of equal merit."""

from pathlib import Path
from typing import Any

import numpy as np

from .figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, panels, ticks

STYLES = {
    "exact": (BLACK, "*", ""),
    "checkpointing": (BLACK, "P", ""),
    "micro-batches": (BLACK, "X", ":"),
    "bf16 inputs": (BLACK, "h", ""),
    "Rounding to bits": ("#B8860B", "o", "-"),
    "Spatial (default)": (GREEN, "v", "-"),
    "Spatial, both VJPs": (GREEN, "^", "--"),
    "examples": (SKY, "s", "-"),
    "examples, centred": (SKY, "o", "-"),
    "examples, and channels for the input VJP": (SKY, "D", "--"),
    "channels": (ORANGE, "o", "-"),
    "axes, Bernoulli": (BLUE, "s", "-"),
    "projection, Gaussian": (PINK, "D", "-"),
}
TOP = 50  # what strays further leaves the panel
LABELS = {
    "micro-batches": "2, 4, 8 micro-batches",
    "checkpointing": "checkpointing (line: to its peak)",
    "Rounding to bits": "rounding to 8, 4, 2, 1 bits",
}


def draw(rows: list[dict[str, Any]], caption: str, name: str) -> list[Path]:
    """Two panels, time and bytes, written as PNG and SVG."""
    files: list[Path] = []
    with panels(name, 2, (8.6, 5.4), files) as (figure, axes):
        for panel, cost in zip(axes, ("time", "bytes"), strict=True):
            _panel(panel, rows, cost)
            panel.sharey(axes[0])
        axes[0].set_xlabel("time of forward and backward pass / exact")
        axes[1].set_xlabel("bytes held by convolutions / exact")
        axes[0].set_ylabel(r"gradient variance / minibatch variance")
        ticks(axes[0].xaxis, (0.5, 0.7, 1, 1.4, 2, 3, 5, 7))
        ticks(axes[1].xaxis, [2.0**-power for power in range(0, 7)], fractions=True)
        ticks(axes[0].yaxis, [m * 10.0**e for e in range(3) for m in (1, 2, 5)])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=2.6)
        figure.suptitle(
            f"{caption}. Dotted: equal merit, dashed: that of exact; lower left is better",
            fontsize=9,
            color="#555555",
            x=0.01,
            ha="left",
        )
    return files


def _panel(panel: Any, rows: list[dict[str, Any]], cost: str) -> None:
    for curve, (colour, marker, line) in STYLES.items():
        found = [row for row in rows if row["curve"] == curve]
        x, y = [row[cost] for row in found], [row["total_variance"] for row in found]
        size = {"*": 10, "P": 7, "X": 7}.get(marker, 5)
        label = LABELS.get(curve, curve)
        panel.plot(
            x, y, label=label, color=colour, marker=marker, linestyle=line or "none", markersize=size, linewidth=1.2
        )
        if cost == "bytes" and curve == "checkpointing" and found:
            panel.plot([x[0], found[0]["peak_bytes"]], [y[0]] * 2, color=colour, linewidth=1)
    panel.set_xscale("log")
    panel.set_yscale("log")
    left, right = panel.get_xlim()
    bottom, top = 0.8, min(TOP, panel.get_ylim()[1])
    for merit in 2.0 ** np.arange(-8, 8):
        style = "--" if merit == 1 else ":"
        panel.plot([left, right], [merit / left, merit / right], color=GREY, linewidth=0.7, linestyle=style, zorder=0)
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)
