"""Plots of memory, time and accuracy by method."""

from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from randbp.diagnostics.timing import quartiles
from randbp.report.svg import INK, MUTED, SERIES, figure, svg
from randbp.text.units import PERCENT, keep_rate, quantity

from .methods import Methods
from .standing import Standing, standings

SHAPES = {"exact": "s", "preset": "o", "rival": "D"}


def tradeoff_plot(methods: Methods) -> str:
    """Plot time per step against peak memory, both as ratios to exact, with the accuracies in the legend."""
    stand = standings(methods)
    with figure(5.2, 3.8) as (drawn, axes):
        axes.set_title("Time per step over exact")
        for line in (axes.axhline, axes.axvline):
            line(1, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        for standing, colour in zip(stand, _colours(stand), strict=True):
            low, middle, high = quartiles(standing.ratios)
            look: Any = {"color": colour, "zorder": 3}
            axes.errorbar(standing.peak, middle, [[middle - low], [high - middle]], fmt="none", linewidth=1.2, **look)
            name, accuracy = standing.method.name, standing.accuracy if standing.trained else None
            label = name + (f", {quantity(accuracy.mean, accuracy.std, PERCENT)}" if accuracy else "")
            look |= {"marker": SHAPES[standing.method.role], "markersize": 8, "linestyle": "", "label": label}
            axes.plot(standing.peak, middle, **look)
        axes.set_xscale("log", base=2)
        least = min(standing.peak for standing in stand)
        ticks = [1 / 2**power for power in range(8) if 1 / 2**power > least / 2]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda held, _: keep_rate(held)))
        axes.set_xlim(least / 1.35, max(1.0, *(s.peak for s in stand)) * 1.35)
        slowest = max(quartiles(s.ratios).q75 for s in stand)
        fastest = min(quartiles(s.ratios).q25 for s in stand)
        room = max(slowest - fastest, 0.2)
        axes.set_ylim(fastest - 0.15 * room, slowest + 0.2 * room)
        axes.set_xlabel("peak memory over exact")
        axes.grid(True, axis="x")
        drawn.legend(loc="outside lower center", ncols=2, labelcolor=MUTED)
        return svg(drawn, "tradeoff", "Time per step against peak memory, both over exact")


def accuracy_difference_plot(methods: Methods) -> str:
    """Plot the difference of test accuracy to exact: each seed, the mean, and its confidence interval."""
    every = standings(methods)
    shown = [(s, colour) for s, colour in zip(every, _colours(every), strict=True) if s.trained][1:]
    stand = [standing for standing, _ in shown]
    with figure(5.2, 3.8) as (drawn, axes):
        axes.set_title("Test accuracy less exact's, points")
        spread = stand[0].spread * 100
        axes.axvspan(-spread, spread, color=MUTED, alpha=0.13, linewidth=0, zorder=0)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        reach = max([spread, 0.5, *(abs(100 * d) for s in stand for d in s.differences)]) * 1.5
        for row, (standing, colour) in enumerate(shown):
            difference = standing.difference.map(lambda value: value * 100)
            height = len(stand) - 1 - row
            ends = [max(-reach, difference.low), min(reach, difference.high)]
            axes.plot(ends, [height, height], color=colour, linewidth=1.6, zorder=3)
            axes.plot(
                difference.estimate, height, marker=SHAPES[standing.method.role], markersize=7, color=colour, zorder=4
            )
            points = [value * 100 for value in standing.differences]
            axes.scatter(points, [height + 0.22] * len(points), s=12, color=colour, alpha=0.6, linewidth=0, zorder=3)
        axes.set_yticks(range(len(stand)), [standing.method.name for standing in reversed(stand)])
        axes.set_ylim(-0.6, len(stand) - 0.4)
        axes.set_xlim(-reach, reach)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_xlabel("band: spread of exact's seeds, line: 95 %, dots: seeds")
        return svg(drawn, "difference", "Test accuracy less that of exact, in points")


def _colours(stand: list[Standing]) -> list[str]:
    """The colours: black for exact, a colour of its own for each other method."""
    others = iter(SERIES)
    return [INK if standing.method.role == "exact" else next(others) for standing in stand]
