"""Errors of estimated gradients beside the minibatch noise, as a figure for a paper."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .significance import Interval

ERROR, NOISE = "#0072B2", "#D55E00"
Series = Sequence[Interval | None]


def plot_intervals(names: Sequence[str], errors: Series, noises: Series, apart: int, title: str) -> Figure:
    """Plot, for each name on its own line, root mean square errors and those of the minibatch on a logarithmic axis.

    The names from the number ``apart`` on stand below a rule.
    """
    figure = Figure(figsize=(6.4, 1.3 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    heights = [-number - (number >= apart) * 0.5 for number in range(len(names))]
    shown = []
    series = (("estimate", ERROR, "o", 0.12, errors), ("minibatch noise", NOISE, "D", -0.12, noises))
    for label, colour, marker, shift, found in series:
        known = [(i, y + shift) for i, y in zip(found, heights, strict=True) if i and i.estimate > 0]
        if not known:
            continue
        shown += [interval for interval, _ in known]
        axes.errorbar(
            [i.estimate for i, _ in known],
            [y for _, y in known],
            xerr=list(zip(*((i.estimate - i.low, i.high - i.estimate) for i, _ in known), strict=True)),
            fmt=marker,
            color=colour,
            markersize=4,
            elinewidth=1.2,
            label=label,
        )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.axhline(heights[apart] + 0.75, color="#BBBBBB", linewidth=0.7)
    axes.set_yticks(heights, names)
    axes.set_ylim(heights[-1] - 0.6, 0.6)
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log", nonpositive="clip")
    low = min((max(interval.low, interval.estimate / 2) for interval in shown), default=0.5)
    high = max((interval.high for interval in shown), default=1.0)
    axes.set_xlim(0.6 * low, 1.6 * high)  # as far apart as two ticks
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("root mean square deviation from the exact gradient, relative to its norm", fontsize=9)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    axes.set_title(title, color="#555555", fontsize=9, loc="left")
    return figure
