"""Figures as SVG elements whose colours come from the page around them."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

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
HALO = [withStroke(linewidth=3, foreground=PAPER)]
"""Effect of a text that stays legible on lines."""


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of this many inches, drawn in the page's style without touching Matplotlib's global state."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.subplots()


def svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element without fixed size, fonts or colours; ids begin with the name, so several fit."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page has fonts of its own
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    for pattern, replacement in (
        (r"(?s)<metadata>.*?</metadata>", ""),
        (r'(<svg[^>]*?) height="[^"]*"', r"\1"),
        (r'(<svg[^>]*?) width="[^"]*"', r"\1"),
        (r' xmlns(:xlink)?="[^"]*"', ""),
        (r"font-family:[^;\"]*;?", ""),
        (r"font: ([^;\"']*?)(\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \2; font-weight: \1"),
        (r'\bid="', f'id="{name}-'),
        (r'(href="#|url\(#)', rf"\1{name}-"),
    ):
        text = re.sub(pattern, replacement, text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
