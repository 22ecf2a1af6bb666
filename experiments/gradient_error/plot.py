"""The curve as a figure for a paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.gradient_error.results import fraction
from experiments.gradient_error.series import SERIES

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "gradient-error",
}


def draw_figure(summary: pd.DataFrame, caption: str, files: Sequence[Path]) -> None:
    """Draw one panel per data set, real data first, and write it to each of ``files`` (PNG, SVG, PDF …)."""
    names = summary.sort_values("real", ascending=False, kind="stable")["data"].unique()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(names), 4.5), layout="constrained")
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            rows = summary[summary["data"] == name]
            axes.set_title(f"{'Real' if rows['real'].iloc[0] else 'Synthetic'}: {name}")
            _curves(axes, rows)
        panels[0].set_ylabel(r"relative gradient error $\Vert g-\hat{g}\,\Vert\,/\,\Vert g\Vert$")
        formula, *curves = zip(*panels[0].get_legend_handles_labels(), strict=True)
        figure.legend(*zip(*curves, formula, strict=True), loc="outside lower center", ncols=2, handlelength=3)
        figure.suptitle(caption, fontsize=9, color="#555555", x=0.01, ha="left")
        for file in files:
            figure.savefig(file, dpi=300, metadata={"Date": None} if file.suffix == ".svg" else None)


def _curves(axes: Axes, rows: pd.DataFrame) -> None:
    keeps = np.sort(rows["keep"].unique())
    for series in SERIES:
        curve = rows[rows["estimator"] == series.label].sort_values("keep")
        axes.errorbar(
            curve["keep"],
            curve["mean"],
            curve["std"].fillna(0),
            label=series.label,
            color=series.colour,
            marker=series.marker,
            markersize=4.5,
            markerfacecolor="white" if series.reference else series.colour,
            linestyle="--" if series.reference else "-",
            linewidth=1.4,
            capsize=2.5,
            elinewidth=1,
        )
    grid = np.geomspace(keeps[0], keeps[-1], 100)
    axes.plot(grid, np.sqrt(1 / grid - 1), color="#888888", linewidth=0.9, linestyle=":", label=r"$\sqrt{1/p-1}$")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("keep rate $p$")
    axes.xaxis.set_major_locator(FixedLocator(list(keeps)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda keep, _: fraction(keep)))
    axes.yaxis.set_major_locator(FixedLocator([m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
