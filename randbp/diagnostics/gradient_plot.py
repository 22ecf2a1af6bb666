"""Errors of estimated gradients beside the minibatch noise, as a figure for a paper."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .gradient_rows import GradientError, GradientRow

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
}
TICKS = [m * 10.0**e for e in range(-9, 6) for m in (1, 2, 5)]
ERROR, NOISE = "#0072B2", "#D55E00"


def plot_gradient_error(result: GradientError) -> Figure:
    """Plot, for each layer on its own line, the estimate's error and the minibatch noise on a logarithmic axis.

    Errors are root mean squares over draws, so that they compare with the noise.
    """
    rows = [*result.rows, result.total, result.model]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.3 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots()
        heights = [-float(number) - (number >= len(result.rows)) * 0.5 for number in range(len(rows))]
        drawn = [("estimate", ERROR, "o", 0.12, _errors(rows))]
        if result.micro_batches:
            drawn.append(("minibatch noise", NOISE, "D", -0.12, [row.noise for row in rows]))
        shown = [i for *_, found in drawn for i in found if i and i.estimate > 0]
        low = _tick([max(i.low, i.estimate / 2) for i in shown], below=True)
        for label, colour, marker, shift, found in drawn:
            known = [(i, y + shift) for i, y in zip(found, heights, strict=True) if i and i.estimate > 0]
            axes.errorbar(
                [i.estimate for i, _ in known],
                [y for _, y in known],
                xerr=[
                    [i.estimate - min(i.estimate, max(i.low, low)) for i, _ in known],
                    [max(0.0, i.high - i.estimate) for i, _ in known],
                ],
                fmt=marker,
                color=colour,
                markersize=4,
                elinewidth=1.2,
                label=label,
            )
        axes.axhline(heights[len(result.rows)] + 0.75, color="#BBBBBB", linewidth=0.7)
        axes.set_yticks(heights, [row.name for row in rows])
        axes.set_ylim(heights[-1] - 0.6, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xscale("log")
        axes.set_xlim(low, max(2 * low, _tick([i.high for i in shown], below=False)))
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(axis="x")
        axes.set_xlabel("root mean square deviation from the exact gradient, relative to its norm")
        figure.legend(loc="outside upper right", ncols=2)
        axes.set_title(f"{result.draws} draws, batch of {result.batch_size}", color="#555555", fontsize=9)
    return figure


def _tick(values: list[float], below: bool) -> float:
    """The tick just below the least value or just above the largest one."""
    if below:
        return max((tick for tick in TICKS if tick <= min(values, default=1.0)), default=TICKS[0])
    return min((tick for tick in TICKS if tick >= max(values, default=1.0)), default=TICKS[-1])


def _errors(rows: list[GradientRow]) -> list[Any]:
    return [row.variance.map(lambda square: max(0.0, square) ** 0.5) for row in rows]
