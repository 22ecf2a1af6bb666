"""The comparison as vector plots whose colours come from the page around them."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from html import escape
from math import isfinite
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..text.units import decimals, keep_rate, pick_unit, ratio
from .groups import Comparison, Group, Statistic
from .runs import Run
from .table import COST_COLUMNS, accuracy_name

# Matplotlib knows no CSS variables, so it draws in these colours and the SVG text is changed afterwards.
INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#0000a{number}" for number in range(1, 9))
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of settings may have dollar signs in them
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def accuracy_plot(comparison: Comparison) -> str | None:
    """Plot accuracy against keep rate: mean, standard deviation and every run; ``None`` if nothing can be compared."""
    name = comparison.accuracy
    if name is None or not _comparable(comparison):
        return None
    with _figure(5.2, 3.2) as (figure, axes):
        axes.set_title(f"{accuracy_name(comparison).capitalize()}, %")
        _against_keep_rate(axes, comparison, lambda group: group.metric(name), scale=100, dots=True)
        low, high = axes.get_ylim()
        room = max(0, 4 - (high - low)) / 2  # a span below four per cent would make noise look like a finding
        if 0 <= low <= 100.5:  # else it is no share
            axes.set_ylim(max(low - room, 0), min(high + room, 100.5))
        _legend(axes)
        return _svg(figure, "accuracy", axes.get_title(loc="left"))


def cost_plots(comparison: Comparison) -> list[str]:
    """Plot each cost against keep rate, as a ratio to exact if there is an exact run, else in its unit.

    Times that other work disturbed are left out, and so is a plot with less than two keep rates to show.
    """
    plots = []
    for cost, heading, units in COST_COLUMNS:

        def measure(group: Group, cost: str = cost) -> Statistic | None:
            return group.trusted_cost(cost)

        groups = [group for group in comparison.groups if measure(group)]
        known = [statistic.mean for group in groups if (statistic := measure(group))]
        if len({group.keep for group in groups}) < 2:
            continue
        relative = all(comparison.ratio(group, measure) is not None for group in groups)
        with _figure(3.4, 2.7) as (figure, axes):
            size, symbol = pick_unit(max(known), units)
            unit = "ratio to exact" if relative else symbol
            axes.set_title(f"{heading.capitalize()}, {unit}")
            if relative:
                axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
                shown, scale = _relative(comparison, measure), 1.0
            else:
                shown, scale = measure, 1 / size
            _against_keep_rate(axes, comparison, shown, scale=scale, values=ratio if relative else _number)
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
            if comparison.accuracy is None:  # else the plot of the accuracy has it
                _legend(axes)
            plots.append(_svg(figure, cost, axes.get_title(loc="left")))
    return plots


def loss_plot(comparison: Comparison) -> str | None:
    """Plot training loss against step, as the mean over each group's runs; ``None`` if no run logged one."""
    curves = [(group, curve) for group in comparison.groups if (curve := mean_curve(group.runs))]
    if not curves:
        return None
    series = {id(group): index for index, groups in enumerate(_series(comparison).values()) for group in groups}
    one = len({series.get(id(group)) for group, _ in curves if not group.exact}) <= 1
    with _figure(5.2, 3.2) as (figure, axes):
        title = "Training loss" + (", running mean" if any(_window(curve) > 1 for _, curve in curves) else "")
        axes.set_title(title if one else f"{title}; paler: lower keep rate")
        for index, (group, curve) in enumerate(curves):
            steps, losses = smooth(curve)
            if one:  # one estimator: the colour tells the keep rate
                colour, strength, label = SERIES[(index - 1) % len(SERIES)], 1.0, group.rate
            else:
                colour = SERIES[series.get(id(group), 0) % len(SERIES)]
                others = sorted({g.keep for g, _ in curves if series.get(id(g)) == series.get(id(group))})
                strength = 0.35 + 0.65 * (others.index(group.keep) + 1) / len(others)
                label = comparison.label(group)
            if label.startswith("_") or label in axes.get_legend_handles_labels()[1]:
                label = "_"  # Matplotlib's way to leave a line out of the legend
            look: Any = {"color": INK, "zorder": 3} if group.exact else {"color": colour, "alpha": strength}
            axes.plot(steps, losses, label=label, linewidth=1.4, **look)
        values = [loss for _, curve in curves for loss in curve[1] if isfinite(loss) and loss > 0]
        if values and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))  # the usual one writes formulas
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        axes.legend(title="keep rate" if one else None, title_fontsize=9, labelcolor=MUTED)
        return _svg(figure, "loss", "Training loss against step")


Curve = tuple[Sequence[int], Sequence[float]]


def mean_curve(runs: Sequence[Run]) -> Curve | None:
    """Loss curve averaged over runs at the steps that all of them logged; ``None`` if there are none."""
    curves = [dict(zip(*run.losses, strict=True)) for run in runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    steps = sorted(set.intersection(*map(set, curves)))
    return (steps, [sum(curve[step] for curve in curves) / len(curves) for step in steps]) if steps else None


def smooth(curve: Curve, points: int = 40) -> Curve:
    """Running mean over a window that leaves about ``points`` independent points; short curves are not changed.

    Example:
        >>> smooth((range(4), [4.0, 2.0, 2.0, 0.0]), points=2)
        ([1, 2, 3], [3.0, 2.0, 1.0])
    """
    steps, losses = curve
    window = _window(curve, points)
    sums = [sum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]
    return list(steps[window - 1 :]), sums


def _window(curve: Curve, points: int = 40) -> int:
    return max(1, len(curve[0]) // points)


def _comparable(comparison: Comparison) -> bool:
    return len({group.keep for group in comparison.groups if group.finished}) > 1


def _series(comparison: Comparison) -> dict[str, list[Group]]:
    """Finished groups that form one line: those with one label, and their exact group."""
    series: dict[str, list[Group]] = {}
    for group in comparison.groups:
        if group.finished and not group.exact:
            exact = comparison.exact(group)
            series.setdefault(comparison.label(group), [exact] if exact else []).append(group)
    drawn = {id(group) for groups in series.values() for group in groups}
    for group in comparison.groups:
        if group.finished and id(group) not in drawn:
            series.setdefault(comparison.label(group), []).append(group)
    return series


def _relative(
    comparison: Comparison, measure: Callable[[Group], Statistic | None]
) -> Callable[[Group], Statistic | None]:
    def relative(group: Group) -> Statistic | None:
        exact = comparison.exact(group)
        ours, theirs = measure(group), measure(exact) if exact else None
        if ours is None or theirs is None or not theirs.mean:
            return None
        return Statistic.of(value / theirs.mean for value in ours.values)

    return relative


def _against_keep_rate(
    axes: Axes,
    comparison: Comparison,
    measure: Callable[[Group], Statistic | None],
    scale: float,
    dots: bool = False,
    values: Callable[[float], str] | None = None,
) -> None:
    series = _series(comparison)
    keeps: set[float] = set()
    for (label, groups), colour in zip(series.items(), SERIES * (1 + len(series) // len(SERIES)), strict=False):
        points = [(g.keep, s) for g in groups if (s := measure(g)) is not None and isfinite(s.mean * scale)]
        points.sort(key=lambda point: point[0])
        if not points:
            continue
        x = [keep for keep, _ in points]
        y = [statistic.mean * scale for _, statistic in points]
        spread = [(statistic.std or 0) * scale for _, statistic in points]
        keeps.update(g.keep for g in groups if not g.by_layer)
        hollow: Any = {"markerfacecolor": PAPER} if any(group.by_layer for group in groups) else {}
        axes.plot(x, y, color=colour, marker="o", markersize=5, label=label, zorder=3, **hollow)
        if any(spread):
            axes.errorbar(x, y, spread, color=colour, fmt="none", capsize=3, linewidth=1.2, zorder=3)
        for keep, statistic in points if dots else ():
            if len(statistic.values) > 1:
                runs = [value * scale for value in statistic.values]
                axes.scatter([keep] * len(runs), runs, s=9, color=colour, alpha=0.4, linewidth=0, zorder=2)
        if values is not None and len(series) == 1:
            halo = [withStroke(linewidth=3, foreground=PAPER)]
            above: Any = {"zorder": 4, "path_effects": halo} | {
                "xytext": (0, 7),
                "textcoords": "offset points",
                "ha": "center",
                "color": INK,
                "fontsize": 9,
            }
            for keep, value in zip(x, y, strict=True):
                axes.annotate(values(value), (keep, value), **above)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("keep rate" + (" (hollow: mean over layers)" if any(g.by_layer for g in comparison.groups) else ""))
    axes.margins(x=0.12, y=0.15)
    if 0 < len(keeps) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(sorted(keeps)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda keep, _: keep_rate(keep)))


def _number(value: float) -> str:
    return f"{value:.{decimals(value)}f}"


def _legend(axes: Axes) -> None:
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(labelcolor=MUTED, loc="best")


@contextmanager
def _figure(width: float, height: float) -> Any:
    """A figure of this many inches, drawn in the page's style without touching Matplotlib's global state."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element without fixed size, fonts or colours; ids begin with the name, so several fit."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page has fonts of its own
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r"font: ([^;\"']*?)(\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \2; font-weight: \1", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
