"""A figure and a page of the ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.gradient_error.plot import STYLE
from experiments.runs_once import Row

NAMES = {"H": "$H$", "H_f": "$H_f$", "H_o": "$H_o$"}
COLOURS = {"H": "#222222", "H_f": "#D55E00", "H_o": "#0072B2"}
MARKERS = {"H": "o", "H_f": "s", "H_o": "^"}
DEPTHS = {2: "#56B4E9", 3: "#222222", 4: "#009E73"}
KINDS = {"linear": "o", "ReLU": "s", "tanh": "^"}


def write_page(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write ``ranks.md`` with its figure; the lines of its tables."""
    _figure(folder, rows)
    generated = [row for row in rows if row["run"]["series"] == "generated"]
    linear = [row for row in rows if row["run"]["activation"] == "linear"]
    kernels = [row for row in rows if row["run"]["series"] == "kernel"]
    table = [
        f"| of {len(generated)} generated networks | at most the bound | equal to it | rank over bound, mean |",
        "|---|---|---|---|",
        *(_line(name, generated, "bounds") for name in NAMES),
        *(_line(name, generated, "dense", ", dense bound") for name in NAMES),
    ]
    wide = [row for row in rows if row["run"]["series"] == "width"]
    width = max(row["run"]["net"]["channels"][1] for row in wide)
    widest = [
        f"| width {width}, layers | activation | parameters | rank H | bound | rank H_f | bound | rank H_o | bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in wide:
        if row["run"]["net"]["channels"][1] == width:
            cells = [f"{row['ranks'][name]} | {_bound(row, name)}" for name in NAMES]
            head = f"| {len(row['run']['net']['kernels'])} | {row['run']['activation']} | {row['parameters']} | "
            widest.append(head + " | ".join(cells) + " |")
    clear = min(gap for row in linear for gap in row["gaps"].values() if gap is not None)
    equal = sum(row["ranks"] == row["bounds"] for row in kernels)
    verdict = [
        f"Two layers, all kernel sizes: all three ranks equal their bounds in {equal} of {len(kernels)} networks.",
        f"Smallest eigenvalue that counts over the largest that does not, in linear networks: at least {clear:.0e}.",
    ]
    text = [
        "# Ranks of curvature matrices of linear CNNs",
        "",
        "`python -m experiments hessian-rank`; `experiments/hessian_rank/bounds.py` states the bounds.",
        "",
        "![ranks and bounds](ranks.png)",
        "",
        *table,
        "",
        *widest,
        "",
        *verdict,
        "",
    ]
    (folder / "ranks.md").write_text("\n".join(text))
    return [*table, *widest, *verdict, f"written to {folder / 'ranks.md'}"]


def _bound(row: Row, name: str) -> str:
    return str(row["bounds"][name]) if row["run"]["activation"] == "linear" else ""


def _line(name: str, rows: Sequence[Row], kind: str, told: str = "") -> str:
    pairs = [(row["ranks"][name], min(row["parameters"], row[kind][name])) for row in rows]
    held, equal = (sum(test) for test in ([a <= b for a, b in pairs], [a == b for a, b in pairs]))
    return f"| {name}{told} | {held} | {equal} | {sum(a / b for a, b in pairs) / len(pairs):.3f} |"


def _figure(folder: Path, rows: Sequence[Row]) -> None:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "hessian-rank"}):
        figure = Figure(figsize=(9.6, 3.5), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        wide = [row for row in rows if row["run"]["series"] == "width"]
        three = [r for r in wide if len(r["run"]["net"]["kernels"]) == 3 and r["run"]["activation"] == "linear"]
        _curves(left, {row["run"]["net"]["channels"][1]: row for row in three})
        left.set_title("Three linear layers")
        left.set_xlabel("hidden channels")
        left.set_ylabel("rank")
        for axis, values in ((left.xaxis, [1, 2, 4, 8, 16]), (left.yaxis, [10, 30, 100, 300, 1000])):
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_locator(FixedLocator(values))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        kernels = {r["run"]["net"]["kernels"][0][0]: r for r in rows if r["run"]["series"] == "kernel"}
        _curves(middle, kernels)
        middle.set_title("Two linear layers, kernels of $k$ and $11-k$")
        middle.set_xlabel("$k$")
        middle.set_ylim(0, None)
        middle.xaxis.set_major_locator(FixedLocator([1, 3, 5, 7, 9]))
        _against_parameters(right, wide)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=5)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
        for suffix in ("png", "svg"):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"ranks.{suffix}", dpi=200, metadata=metadata)


def _curves(axes: Axes, rows: Mapping[int, Row]) -> None:
    axes.plot(list(rows), [row["parameters"] for row in rows.values()], ":", color="#888888", label="parameters")
    for name, label in NAMES.items():
        axes.plot(list(rows), [row["bounds"][name] for row in rows.values()], color=COLOURS[name], linewidth=1)
        axes.plot(
            list(rows), [row["ranks"][name] for row in rows.values()], linestyle="", marker=MARKERS[name], markersize=5,
            color=COLOURS[name], markerfacecolor="white", label=f"rank of {label}",
        )  # fmt: skip
    axes.plot([], [], color="#888888", linewidth=1, label="bounds")


def _against_parameters(axes: Axes, rows: Sequence[Row]) -> None:
    for depth, colour in DEPTHS.items():
        for kind, marker in KINDS.items():
            chosen = [
                (row["parameters"], row["ranks"]["H"])
                for row in rows
                if len(row["run"]["net"]["kernels"]) == depth and row["run"]["activation"] == kind
            ]
            if chosen:
                label = f"{depth} layers" + ("" if kind == "linear" else f", {kind}")
                face = "white" if kind == "linear" else colour
                axes.plot(*zip(*chosen, strict=True), color=colour, marker=marker, markersize=4.5, linewidth=1,
                          markerfacecolor=face, label=label)  # fmt: skip
    most = max(row["parameters"] for row in rows)
    line = [most / 64, most]
    axes.plot(line, [3 * each**0.5 for each in line], "--", color="#888888", linewidth=1, label=r"$\propto\sqrt{P}$")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Rank of $H$")
    axes.set_xlabel("parameters $P$")
    for axis, values in ((axes.xaxis, [10, 30, 100, 300, 1000]), (axes.yaxis, [10, 30, 100, 300, 1000])):
        axis.set_major_locator(FixedLocator(values))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
