"""A figure and a page of the learning curves."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.gradient_error.plot import STYLE
from experiments.runs_once import Row

COLOURS = ("#D55E00", "#009E73", "#0072B2")
"""Of the narrowest, a middle and the widest network."""


def write_page(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write ``learning.md`` with its figure; the lines of its table."""
    widths = sorted({row["run"]["width"] for row in rows})
    by_width = {width: [row for row in rows if row["run"]["width"] == width] for width in widths}
    _figure(folder, by_width)
    first = rows[0]
    table = [
        "| width | parameters | training loss, real and predicted | test loss | test accuracy "
        "| deviation of test outputs | change of the kernel |",
        "|---|---|---|---|---|---|---|",
    ]
    for width, runs in by_width.items():
        pairs = []
        for name, form in (("training loss", ".4f"), ("test loss", ".4f"), ("test accuracy", ".3f")):
            values = [mean(row["curves"][f"{kind} {name}"][-1] for row in runs) for kind in ("real", "predicted")]
            pairs.append(", ".join(f"{value:{form}}" for value in values))
        ends = [f"{mean(row[name] for row in runs):.3f}" for name in ("deviation", "drift")]
        table.append(f"| {' | '.join([str(width), str(runs[0]['parameters']), *pairs, *ends])} |")
    run = first["run"]
    text = [
        "# Learning beside the prediction of the empirical neural tangent kernel",
        "",
        f"`python -m experiments ntk`: {run['images']} images of digits (8 x 8), {first['steps'][-1]} steps, means of "
        f"{len(by_width[widths[0]])} seeds. The deviation is the distance of real from predicted test outputs over the "
        "norm of the latter, the change of the kernel its distance from that of the start over the norm of that.",
        "",
        "![learning curves](learning.png)",
        "",
        *table,
        "",
    ]
    (folder / "learning.md").write_text("\n".join(text))
    return [*table, f"written to {folder / 'learning.md'}"]


def _figure(folder: Path, by_width: dict[int, list[Row]]) -> None:
    widths = list(by_width)
    chosen = dict(zip((widths[0], widths[len(widths) // 2], widths[-1]), COLOURS, strict=True))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "ntk"}):
        figure = Figure(figsize=(9.6, 3.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for axes, name in ((left, "training loss"), (middle, "test loss")):
            _curves(axes, by_width, chosen, name)
        for name, marker, label in (
            ("deviation", "o", "test outputs, from prediction"),
            ("drift", "s", "kernel, from start"),
        ):
            values = [[row[name] for row in by_width[width]] for width in widths]
            means = [mean(each) for each in values]
            low, high = ([bound(each) for each in values] for bound in (min, max))
            errors = [
                [m - a for m, a in zip(means, low, strict=True)],
                [b - m for m, b in zip(means, high, strict=True)],
            ]
            right.errorbar(
                widths, means, errors, marker=marker, markersize=5, linewidth=1.2, capsize=2.5, color="#222222",
                markerfacecolor="white" if name == "drift" else "#222222", label=label,
            )  # fmt: skip
        level = mean(row["drift"] for row in by_width[widths[-1]])
        guide = [0.7 * level * (widths[-1] / width) ** 0.5 for width in widths]
        right.plot(widths, guide, "--", color="#888888", linewidth=1, label=r"$\propto 1/\sqrt{\mathrm{width}}$")
        right.set(xscale="log", yscale="log", title="Relative change at the end", xlabel="width")
        right.xaxis.set_major_locator(FixedLocator(widths))
        right.yaxis.set_major_locator(FixedLocator([m * 10.0**e for e in range(-3, 1) for m in (1, 2, 5)]))
        for axis in (right.xaxis, right.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        handles = [Line2D([], [], color=colour, label=f"width {width}") for width, colour in chosen.items()]
        handles += [Line2D([], [], color="#666666", label="real")]
        handles += [Line2D([], [], color="#666666", linestyle="--", label="predicted")]
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
        for suffix in ("png", "svg"):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"learning.{suffix}", dpi=200, metadata=metadata)


def _curves(axes: Axes, by_width: dict[int, list[Row]], chosen: dict[int, str], name: str) -> None:
    """Means over the seeds; step 0 stands at half a step."""
    for width, colour in chosen.items():
        runs = by_width[width]
        steps = [max(step, 0.5) for step in runs[0]["steps"]]
        for kind, style in (("real", "-"), ("predicted", "--")):
            means = [mean(values) for values in zip(*(row["curves"][f"{kind} {name}"] for row in runs), strict=True)]
            axes.plot(steps, means, style, color=colour, linewidth=1.4)
    axes.set(xscale="log", yscale="log", title=name.capitalize(), xlabel="steps")
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 4, 16, 64, 256, 1024]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: "0" if step == 0.5 else f"{step:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if axes.get_ylim()[0] > 0.05:  # within a decade
        axes.yaxis.set_major_locator(FixedLocator([0.1, 0.15, 0.2, 0.3, 0.4, 0.5]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
