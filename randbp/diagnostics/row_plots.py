"""Rows of a result drawn one below the other: bytes as bars, errors as intervals on a logarithmic axis."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..text.units import BYTES, pick_unit
from .significance import Interval

BEFORE, AFTER, ENOUGH = "#b9cde6", "#3b6fb6", "#c1443c"
ERROR, NOISE = "#0072B2", "#D55E00"


def plot_bytes(
    ax: Axes | None,
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[int]]],
    title: str,
    stacked: bool = True,
    enough: Sequence[int | None] = (),
) -> Axes:
    """Plot a bar for each name, made of the series (label, colour, bytes), or one beside the other for each series."""
    if ax is None:
        import matplotlib.pyplot as plt  # which shows the figure where people work interactively

        each = 0.26 if stacked else 0.34
        _, ax = plt.subplots(figsize=(7.5, 1.4 + each * (len(names) + 1)), layout="constrained")
    columns = list(zip(*(sizes for _, _, sizes in series), strict=True))
    size, unit = pick_unit(max((sum(column) if stacked else max(column) for column in columns), default=1), BYTES)
    width, left = 0.8 if stacked else 0.76 / len(series), [0.0] * len(names)
    for number, (label, colour, sizes) in enumerate(series):
        shift = 0.0 if stacked else width * (number - (len(series) - 1) / 2)
        lengths = [each / size for each in sizes]
        ax.barh([y + shift for y in range(len(names))], lengths, width, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, lengths, strict=True)] if stacked else left
    if known := {y: least / size for y, least in enumerate(enough) if least is not None}:
        places = list(known)
        ax.scatter([*known.values()], places, marker="|", s=70, color=ENOUGH, zorder=3, label="would be enough")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(unit)
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(y=0.01)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax


def plot_intervals(
    names: Sequence[str],
    errors: Sequence[Interval | None],
    noises: Sequence[Interval | None],
    apart: int,
    title: str,
) -> Figure:
    """Plot errors and minibatch noise, a line for each name, those from number ``apart`` on below a rule."""
    figure = Figure(figsize=(6.4, 1.3 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots()
    heights = [-number - (number >= apart) * 0.5 for number in range(len(names))]
    shown: list[Interval] = []
    series = (("estimate", ERROR, "o", 0.12, errors), ("minibatch noise", NOISE, "D", -0.12, noises))
    for label, colour, marker, shift, found in series:
        known = {y + shift: i for i, y in zip(found, heights, strict=True) if i and i.estimate > 0}
        if known:
            middles = [i.estimate for i in known.values()]
            reach = [[i.estimate - i.low for i in known.values()], [i.high - i.estimate for i in known.values()]]
            look = {"fmt": marker, "color": colour, "markersize": 4, "elinewidth": 1.2, "label": label}
            axes.errorbar(middles, [*known], xerr=reach, **look)  # type: ignore[arg-type]
            shown += known.values()
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
