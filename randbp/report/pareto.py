"""Accuracy against cost, and the runs that none beats in both."""

from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import Any

from ..text.units import pick_unit
from .comparison_table import COST_COLUMNS, accuracy_name
from .groups import Comparison, Group
from .statistic import Statistic
from .svg import HALO, INK, MUTED, PAPER, SERIES, figure, svg

Point = tuple[float, float]
"""A cost and the accuracy that it buys."""


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices, by rising cost, of the points that no other equals in both respects and surpasses in one.

    Example:
        >>> pareto_front([(4.0, 0.9), (1.0, 0.7), (2.0, 0.6), (3.0, 0.9)])
        [1, 3]
    """
    best, front = -float("inf"), []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def pareto_plots(comparison: Comparison) -> list[str]:
    """Plot accuracy against bytes held and time per step with the Pareto fronts; of costs with two points or more."""
    if (name := comparison.accuracy) is None:
        return []
    plots = []
    for cost, heading, units in COST_COLUMNS[:2]:
        measure = partial(Group.cost, name=cost, trusted=True)
        known: list[tuple[Group, Statistic, Statistic]] = []
        for group in comparison.groups:
            spent, accuracy = measure(group), group.metric(name)
            if spent and accuracy and isfinite(spent.mean) and isfinite(accuracy.mean):
                known.append((group, spent, accuracy))
        if len(known) < 2:
            continue
        size, symbol = pick_unit(max(spent.mean for _, spent, _ in known), units)
        title = f"{accuracy_name(comparison).capitalize()}, %, against {heading}"
        with figure(5.2, 3.2) as (drawn, axes):
            axes.set_title(title)
            points = [(spent.mean / size, 100 * accuracy.mean) for _, spent, accuracy in known]
            front = [points[index] for index in pareto_front(points)]
            axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1, zorder=2, label="Pareto front")
            labels = list(dict.fromkeys(comparison.label(group) for group, _, _ in known if not group.exact))
            for (group, spent, accuracy), point in zip(known, points, strict=True):
                label = comparison.label(group)
                colour = INK if group.exact else SERIES[labels.index(label) % len(SERIES)]
                held: Any = {"xerr": (spent.std or 0) / size, "yerr": 100 * (accuracy.std or 0), "capsize": 3}
                seen = label in axes.get_legend_handles_labels()[1] or label.startswith("_")
                hollow: Any = {} if point in front else {"markerfacecolor": PAPER}
                look: Any = {"fmt": "o", "markersize": 5, "linewidth": 1.2, "zorder": 3, "color": colour}
                axes.errorbar(point[0], point[1], label="_" if seen else label, **held, **look, **hollow)
                above: Any = {"xytext": (6, 6), "textcoords": "offset points", "color": INK, "fontsize": 9}
                axes.annotate(group.leading.rate, point, zorder=4, path_effects=HALO, **above)
            axes.set_xlabel(f"{heading}, {symbol}; at the points: keep rate; hollow: beaten")
            axes.margins(x=0.12, y=0.15)
            axes.legend(labelcolor=MUTED, loc="best")
            plots.append(svg(drawn, f"pareto-{cost}", title))
    return plots
