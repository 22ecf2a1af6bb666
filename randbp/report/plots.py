"""The comparison as plots against keep rate and step."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ..text.units import decimals, keep_rate, pick_unit, ratio
from .comparison_table import COST_COLUMNS, accuracy_name
from .groups import Comparison, Group, Measure
from .run import Run
from .run_files import LossCurve
from .statistic import Statistic
from .svg import HALO, INK, MUTED, PAPER, SERIES, figure, svg


def accuracy_plot(comparison: Comparison) -> str | None:
    """Plot accuracy against keep rate: mean, standard deviation and every run; ``None`` if nothing can be compared."""
    name = comparison.accuracy
    if name is None or len({group.keep for group in comparison.groups if group.finished}) < 2:
        return None

    def percent(group: Group) -> Statistic | None:
        accuracy = group.metric(name)
        return accuracy and accuracy.over(0.01)

    with figure(5.2, 3.2) as (drawn, axes):
        axes.set_title(title := f"{accuracy_name(comparison).capitalize()}, %")
        _against_keep_rate(axes, comparison, percent, dots=True)
        low, high = axes.get_ylim()
        room = max(0, 4 - (high - low)) / 2  # a span below four per cent would make noise look like a finding
        if 0 <= low <= 100.5:  # else it is no share
            axes.set_ylim(max(low - room, 0), min(high + room, 100.5))
        _legend(axes)
        return svg(drawn, "accuracy", title)


def cost_plots(comparison: Comparison) -> list[str]:
    """Plot each cost with two undisturbed keep rates or more against these, as a ratio to exact where possible."""
    plots = []
    for cost, heading, units in COST_COLUMNS:
        trusted = partial(Group.cost, name=cost, trusted=True)
        known = [(group, statistic) for group in comparison.groups if (statistic := trusted(group))]
        if len({group.keep for group, _ in known}) < 2:
            continue
        size, symbol = pick_unit(max(statistic.mean for _, statistic in known), units)
        relative = all(comparison.ratio(group, trusted) is not None for group, _ in known)

        def shown(group: Group, cost: Measure = trusted, size: float = size, relative: bool = relative) -> Any:
            exact = comparison.exact(group) if relative else None
            theirs = cost(exact) if exact else None
            ours = cost(group)
            return ours and ours.over(theirs.mean if theirs else size)

        with figure(3.4, 2.7) as (drawn, axes):
            axes.set_title(title := f"{heading.capitalize()}, {'ratio to exact' if relative else symbol}")
            if relative:
                axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
            _against_keep_rate(axes, comparison, shown, values=ratio if relative else _number)
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
            if comparison.accuracy is None:  # else the plot of the accuracy has it
                _legend(axes)
            plots.append(svg(drawn, cost, title))
    return plots


def loss_plot(comparison: Comparison) -> str | None:
    """Plot training loss against step, mean and standard deviation of each group; ``None`` if no run logged one."""
    curves = [(group, curve) for group in comparison.groups if (curve := mean_curve(group.runs)) is not None]
    if not curves:
        return None
    series = {id(group): index for index, groups in enumerate(_series(comparison).values()) for group in groups}
    one = len({series.get(id(group)) for group, _ in curves if not group.exact}) <= 1
    with figure(5.2, 3.2) as (drawn, axes):
        title = "Training loss" + (", running mean" if any(_window(curve) > 1 for _, curve in curves) else "")
        axes.set_title(title if one else f"{title}; paler: lower keep rate")
        for index, (group, curve) in enumerate(curves):
            smooth = curve.rolling(_window(curve)).mean()
            if one:  # one estimator: the colour tells the keep rate
                colour, strength, label = SERIES[(index - 1) % len(SERIES)], 1.0, group.leading.rate
            else:
                colour = SERIES[series.get(id(group), 0) % len(SERIES)]
                others = sorted({g.keep for g, _ in curves if series.get(id(g)) == series.get(id(group))})
                strength = 0.35 + 0.65 * (others.index(group.keep) + 1) / len(others)
                label = comparison.label(group)
            if label.startswith("_") or label in axes.get_legend_handles_labels()[1]:
                label = "_"  # Matplotlib's way to leave a line out of the legend
            look: Any = {"color": INK, "zorder": 3} if group.exact else {"color": colour, "alpha": strength}
            axes.plot(smooth.index, smooth, label=label, linewidth=1.4, **look)
            if (spread := spread_curve(group.runs)) is not None:
                half = spread.rolling(_window(curve)).mean()
                low = (smooth - half).clip(lower=min(curve.min(), 0.0))
                axes.fill_between(smooth.index, low, smooth + half, color=look["color"], alpha=0.15, linewidth=0)
        values = [loss for _, curve in curves for loss in curve if isfinite(loss) and loss > 0]
        if values and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))  # the usual one writes formulas
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.margins(x=0.01)
        axes.legend(title="keep rate" if one else None, title_fontsize=9, labelcolor=MUTED)
        return svg(drawn, "loss", "Training loss against step")


def mean_curve(runs: Sequence[Run]) -> LossCurve | None:
    """Loss curve averaged over runs at the steps that all of them logged; ``None`` if there are none."""
    curves = _curves(runs)
    return None if curves.empty else curves.mean(axis=1, skipna=False)


def spread_curve(runs: Sequence[Run]) -> LossCurve | None:
    """Standard deviation of the loss over runs at the steps of :func:`mean_curve`; ``None`` of fewer than two runs."""
    curves = _curves(runs)
    return None if curves.empty or curves.shape[1] < 2 else curves.std(axis=1, skipna=False)


def _curves(runs: Sequence[Run]) -> pandas.DataFrame:
    """The loss curves of runs side by side, at the steps that all of them logged."""
    curves = [run.losses for run in runs if len(run.losses)]
    return pandas.concat(curves, axis=1, join="inner").sort_index() if curves else pandas.DataFrame()


def _window(curve: LossCurve, points: int = 40) -> int:
    """The length of a running mean that leaves so many independent points; short curves are not changed."""
    return max(1, len(curve) // points)


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


def _against_keep_rate(
    axes: Axes,
    comparison: Comparison,
    measure: Measure,
    dots: bool = False,
    values: Callable[[float], str] | None = None,
) -> None:
    """Draw a measure of each series: means with their spread, every run as a dot, values beside a single line."""
    series = _series(comparison)
    keeps: set[float] = set()
    for (label, groups), colour in zip(series.items(), SERIES * (1 + len(series) // len(SERIES)), strict=False):
        points = [(g.keep, s) for g in groups if (s := measure(g)) is not None and isfinite(s.mean)]
        if not points:
            continue
        points.sort(key=lambda point: point[0])
        x, y = [keep for keep, _ in points], [statistic.mean for _, statistic in points]
        spread = [statistic.std or 0 for _, statistic in points]
        keeps.update(g.keep for g in groups if not g.leading.by_layer)
        hollow: Any = {"markerfacecolor": PAPER} if any(group.leading.by_layer for group in groups) else {}
        axes.plot(x, y, color=colour, marker="o", markersize=5, label=label, zorder=3, **hollow)
        if any(spread):
            axes.errorbar(x, y, spread, color=colour, fmt="none", capsize=3, linewidth=1.2, zorder=3)
        for keep, statistic in points if dots else ():
            if (count := len(statistic.values)) > 1:
                axes.scatter([keep] * count, statistic.values, s=9, color=colour, alpha=0.4, linewidth=0, zorder=2)
        if values is not None and len(series) == 1:
            above: Any = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "color": INK, "fontsize": 9}
            for keep, value in zip(x, y, strict=True):
                axes.annotate(values(value), (keep, value), zorder=4, path_effects=HALO, **above)
    axes.set_xscale("log", base=2)
    mean = any(group.leading.by_layer for group in comparison.groups)
    axes.set_xlabel("keep rate" + " (hollow: mean over layers)" * mean)
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
