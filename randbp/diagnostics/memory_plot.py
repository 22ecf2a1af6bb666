"""Bytes by holder as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..text.units import BYTES, pick_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, ENOUGH = "#b9cde6", "#3b6fb6", "#c1443c"


def plot_bytes(
    ax: Axes | None,
    names: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[int]]],
    title: str,
    stacked: bool = True,
    enough: Sequence[int | None] = (),
) -> Axes:
    """Plot a bar for each name, made of the series (label, colour, bytes), or one beside the other for each series."""
    import matplotlib.pyplot as plt

    if ax is None:
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
    known = {y: least / size for y, least in enumerate(enough) if least is not None}
    if known:
        lengths, places = list(known.values()), list(known)
        ax.scatter(lengths, places, marker="|", s=70, color=ENOUGH, zorder=3, label="would be enough")
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(unit)
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(y=0.01)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax
