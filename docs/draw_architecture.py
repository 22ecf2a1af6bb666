"""Draws the picture of ``docs/architecture.md``: the parts of randbp by floors, and the ways of three calls.

Run ``python docs/draw_architecture.py`` from the root of a checkout; it writes ``docs/architecture.svg``.
"""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FLOORS: list[list[tuple[str, str, str]]] = [
    [
        ("cli", "the command randbp", ""),
        ("report", "tables and pages of runs", ""),
        ("callbacks", "Lightning callbacks", ""),
        ("integrations", "Hugging Face's Trainer", ""),
    ],
    [("tune", "an estimator for each layer", ""), ("diagnostics", "errors, bytes, times", "")],
    [("randomize", "converts a model's layers, and undoes it", "")],
    [
        ("functional", "conv, conv_transpose, linear", "T"),
        ("lean", "other functions that hold less", "L"),
        ("curvature", "K-FAC and its factors", ""),
    ],
    [("autograd", "exact forward, estimated backward", "T")],
    [("estimators", "what is held of an input, and with which weights", "TP")],
    [("tn", "tensor networks, plans, contraction", "TP")],
    [("codecs", "tensors in few bits", "TL"), ("kernels", "fused operations, random numbers by counter", "TL")],
    [
        ("draws", "seeds, and what is drawn from them", "T"),
        ("layers", "what a layer is", "T"),
        ("_torch", "PyTorch's internals", "L"),
        ("text", "tables and units", ""),
    ],
]
"""From the top: the parts on each floor, what they do, and which ways lead through them. A part imports only parts
below it, and those to the right of it on its own floor."""

WAYS = {"T": ("#c2410c", "a tensor"), "P": ("#1d4ed8", "a plan"), "L": ("#15803d", "a lean call")}
EXTRAS = 1
"""Floors from the top that may need more than torch and opt_einsum: Lightning, matplotlib, W&B, …"""

WIDTH, HEIGHT, GAP, STEP = 10.0, 0.66, 0.14, 0.86  # [units of the drawing]


def box(axes: Axes, left: float, bottom: float, width: float, name: str, text: str, ways: str) -> None:
    """One part: its name, what it does, and a dot for each way through it."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, HEIGHT, boxstyle=style, facecolor="white", edgecolor="#475569")
    )
    axes.text(left + 0.14, bottom + HEIGHT * 0.66, name, fontsize=11, weight="bold", va="center")
    axes.text(left + 0.14, bottom + HEIGHT * 0.28, text, fontsize=8.5, va="center", color="#334155")
    for number, way in enumerate(reversed(ways)):
        axes.plot(left + width - 0.17 - 0.2 * number, bottom + HEIGHT * 0.7, "o", markersize=7, color=WAYS[way][0])


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(8.6, 6.9))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    top = STEP * len(FLOORS)
    for colour, first, last in (("#e8eef6", 0, EXTRAS), ("#fef9ec", EXTRAS, len(FLOORS))):
        height = STEP * (last - first) - 0.06
        axes.add_patch(FancyBboxPatch((-0.15, top - STEP * last - 0.03), WIDTH + 0.3, height, boxstyle="square,pad=0",
                                      facecolor=colour, edgecolor="none"))  # fmt: skip
    for number, floor in enumerate(FLOORS):
        lengths = [max(len(text), 24) for _, text, _ in floor]
        left = 0.0
        for (name, text, ways), length in zip(floor, lengths, strict=True):
            width = (WIDTH - GAP * (len(floor) - 1)) * length / sum(lengths)
            box(axes, left, top - STEP * (number + 1) + 0.07, width, name, text, ways)
            left += width + GAP
    axes.text(WIDTH / 2, top + 0.16, "experiments, bench, configs: repository content", ha="center", fontsize=9.5)
    axes.annotate("", (WIDTH + 0.38, 0.1), (WIDTH + 0.38, top - 0.1), arrowprops={"arrowstyle": "->", "lw": 1.2})
    axes.text(WIDTH + 0.5, top / 2, "imports point down, or to the right", rotation=270, va="center", fontsize=9)
    axes.text(-0.3, top - STEP * EXTRAS / 2, "extras", rotation=90, va="center", ha="right", fontsize=9)
    axes.text(
        -0.3, (top - STEP * EXTRAS) / 2, "torch and opt_einsum alone", rotation=90, va="center", ha="right", fontsize=9
    )
    axes.text(0, -0.3, "The ways of", fontsize=9.5, va="center")
    for number, (colour, name) in enumerate(WAYS.values()):
        axes.plot(1.75 + 1.7 * number, -0.3, "o", markersize=7, color=colour)
        axes.text(1.92 + 1.7 * number, -0.3, name, fontsize=9.5, va="center")
    axes.set(xlim=(-0.7, WIDTH + 0.85), ylim=(-0.55, top + 0.4))
    axes.set_axis_off()
    return figure


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "randbp", "svg.fonttype": "none", "font.family": "DejaVu Sans"})
    draw().savefig(Path(__file__).parent / "architecture.svg", metadata={"Date": None}, facecolor="white")
