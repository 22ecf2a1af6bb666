"""Error against held bytes as a figure: one panel before, one after training."""

from pathlib import Path
from typing import Any

from .figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, panels, ticks
from .journal import Row

# Colour, marker, line. The references are dashed and hollow.
STYLES: dict[str, tuple[str, str, str]] = {
    "channels, Bernoulli": (ORANGE, "o", "--"),
    "channels": (ORANGE, "o", "-"),
    "channels by norm": (ORANGE, "P", "-"),
    "examples": (SKY, "X", "-"),
    "examples, centred": (SKY, "s", "-"),
    "projection, Gaussian": (PINK, "D", "--"),
    "projection, Rademacher": (PINK, "D", "-"),
    "axes, Bernoulli": (BLUE, "s", "--"),
    "axes": (BLUE, "s", "-"),
    "positions by norm, top-k (biased)": (GREY, "x", ":"),
    "Spatial, one set per batch": (GREEN, "<", "-"),
    "Spatial, no mean": (GREEN, "^", "-"),
    "Spatial (default)": (BLACK, "v", "-"),
    "Spatial, single positions": (BLACK, "o", ":"),
    "LowResolution": ("#7B4FA3", ">", "-"),
    "NormSpatial": ("#8B4513", "h", "-"),
    "NormSpatial, 4x4 means": ("#8B4513", "p", "--"),
    "Spatial in 8 bits": ("#B8860B", "v", "-"),
    "Spatial in 4 bits": ("#B8860B", "1", "-"),
    "Rounding, 8 to 1 bits": ("#B8860B", "*", "-"),
}
TITLES = {"untrained": "Before training", "trained": "After 200 training steps"}


def draw(summary: list[Row], name: str) -> list[Path]:
    """One panel per phase, written as PNG and SVG."""
    phases = [phase for phase in TITLES if any(row["phase"] == phase for row in summary)]
    files: list[Path] = []
    with panels(name, len(phases), (1.2 + 3.9 * len(phases), 5.6), files) as (figure, axes):
        for panel, phase in zip(axes, phases, strict=True):
            _panel(panel, [row for row in summary if row["phase"] == phase])
            panel.set_title(TITLES[phase])
            panel.sharey(axes[0])
        axes[0].set_ylabel(r"relative gradient error $\Vert \hat{g}-g\,\Vert\,/\,\Vert g\Vert$")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(phases) == 1 else 3, handlelength=3)
        draws = max(row["draws"] for row in summary)
        caption = (
            f"All-CNN-C on Fashion-MNIST, kernel gradients of a batch; mean and standard deviation of {draws} draws"
        )
        figure.suptitle(caption, fontsize=9, color="#555555", x=0.01, ha="left")
    return files


def _panel(panel: Any, rows: list[Row]) -> None:
    for label, (colour, marker, line) in STYLES.items():
        curve = sorted((row for row in rows if row["estimator"] == label), key=lambda row: row["held"])
        if curve:
            panel.errorbar(
                [row["held"] for row in curve],
                [row["error"] for row in curve],
                [min(row["std"], 0.9 * row["error"]) for row in curve],
                label=label,
                color=colour,
                marker=marker,
                linestyle=line,
                markersize=5,
                markerfacecolor="white" if line == "--" else colour,
                linewidth=1.8 if label == "Spatial (default)" else 1.1,
                capsize=2,
                elinewidth=0.8,
            )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel("bytes held / bytes of the layer inputs")
    ticks(panel.xaxis, [2.0**-power for power in range(1, 7)], fractions=True)
    ticks(panel.yaxis, [m * 10.0**e for e in range(-4, 2) for m in (1, 2, 5)])
