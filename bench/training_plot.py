"""Final accuracy against the keep rate as a figure."""

from pathlib import Path

from .figures import BLACK, BLUE, GREY, ORANGE, panels, ticks
from .journal import Row

STYLES = {"Spatial (default)": (BLACK, "v", "-"), "axes, Bernoulli": (BLUE, "s", "--"), "channels": (ORANGE, "o", "-")}


def draw(summary: list[Row], title: str, within: float, name: str = "training") -> list[Path]:
    """One curve per estimator, the exact runs as a line, and the band that counts as equal."""
    files: list[Path] = []
    with panels(name, 1, (5.6, 4.2), files) as (figure, (panel,)):
        exact = next((row for row in summary if row["estimator"] == "exact"), None)
        if exact:
            panel.axhline(exact["accuracy"], color=GREY, linewidth=1.2, label="exact")
            band = (exact["accuracy"] - within, exact["accuracy"])
            panel.axhspan(*band, color=GREY, alpha=0.2, linewidth=0, label=f"within {within:g} points of exact")
        for label, (colour, marker, line) in STYLES.items():
            curve = sorted((row for row in summary if row["estimator"] == label), key=lambda row: row["keep"])
            panel.errorbar(
                [row["keep"] for row in curve],
                [row["accuracy"] for row in curve],
                [row["std"] for row in curve],
                label=label,
                color=colour,
                marker=marker,
                linestyle=line,
                markerfacecolor="white" if line == "--" else colour,
                linewidth=1.4,
                capsize=2.5,
                elinewidth=1,
            )
        panel.set_xscale("log", base=2)
        panel.set_xlabel("keep rate $p$ of the weight VJPs")
        panel.set_ylabel("final test accuracy in %")
        ticks(panel.xaxis, sorted({row["keep"] for row in summary if row["keep"] < 1}), fractions=True)
        panel.legend(loc="lower right")
        figure.suptitle(title.replace(", All", ",\nAll"), fontsize=9, color="#555555", x=0.01, ha="left")
    return files
