"""What the benchmarks' figures share: style, ticks and files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.gradient_error.plot import STYLE

from .harness import RUNS

BLACK, BLUE, ORANGE, GREEN, PINK, SKY, GREY = (
    "#222222",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#888888",
)


def fraction(number: float) -> str:
    """``1/16`` for 0.0625."""
    return str(Fraction(number).limit_denominator(256))


def ticks(axis: Axis, places: Sequence[float], fractions: bool = False) -> None:
    """Ticks at these places of a logarithmic axis and nowhere else."""
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: fraction(x) if fractions else f"{x:g}"))
    axis.set_minor_locator(NullLocator())


@contextmanager
def panels(
    name: str, columns: int, size: tuple[float, float], files: list[Path], folder: Path = RUNS
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with panels side by side; written as PNG and SVG at the end of the block, the paths put in ``files``."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, list(figure.subplots(1, columns, squeeze=False)[0])
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            files.append(folder / f"{name}.{suffix}")
            figure.savefig(files[-1], dpi=200, metadata={"Date": None} if suffix == "svg" else None)
