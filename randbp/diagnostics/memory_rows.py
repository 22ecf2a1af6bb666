"""Memory reports as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..randomize.left_exact import left_exact_lines
from ..text.text_table import aligned
from ..text.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 40
_NEGLIGIBLE = 0.005
"""Rows below this share of the total are summed up in one row of the table."""


@dataclass(frozen=True)
class Row:
    """Bytes that one operation in one module holds for backward.

    Attributes:
        module: Name within the model; the model's class for itself.
        operation: Function of PyTorch, or the class of a custom ``torch.autograd.Function``.
        bytes: All it holds, each storage once.
        alone: The part of these bytes that nobody else holds.
        least: Bytes that suffice for its gradient, ``None`` where that is not known.
        why: The reason.
        shared_with: Module and operation of those who hold the rest with it.
        hidden: Whether some of it is held outside autograd's saved tensors.
    """

    module: str
    operation: str
    bytes: int
    alone: int
    least: int | None
    why: str
    shared_with: tuple[str, ...] = ()
    hidden: bool = False

    @property
    def excess(self) -> int:
        """Bytes held beyond what suffices."""
        return 0 if self.least is None else max(0, self.bytes - self.least)


@dataclass(frozen=True)
class MemoryReport:
    """Bytes held for a backward pass, by module and operation. ``str()`` is a table, :meth:`plot` a figure.

    Attributes:
        held_bytes: All storages that the forward pass left for backward, each once.
        peak_bytes: Peak of forward and backward pass above their start, without the parameters' gradients; see
            :class:`randbp.diagnostics.StepPeak`.
        rows: Largest first. A storage that several operations hold is in the rows of all of them.
        kept_bytes: Bytes that outlived the backward pass: zero unless the model keeps tensors.
        peak_source: How the peak was measured.
        left_exact: Reasons, by name, why chosen layers of a randomised model stay exact.
    """

    held_bytes: int
    peak_bytes: int
    rows: list[Row] = field(repr=False)
    kept_bytes: int = 0
    peak_source: str = ""
    left_exact: Mapping[str, str] = field(default_factory=dict)

    @property
    def excess(self) -> list[Row]:
        """Rows that hold more than their gradient needs, the most wasteful first."""
        return sorted((row for row in self.rows if row.excess > 0), key=lambda row: -row.excess)

    def compare(self, other: MemoryReport) -> MemoryComparison:
        """Compare this report with a later one of the same model.

        Raises:
            ValueError: If ``other`` is not a report.
        """
        if not isinstance(other, MemoryReport):
            raise ValueError(f"other={other!r}: expected a MemoryReport")
        return MemoryComparison(self, other)

    def __str__(self) -> str:
        head = f"held for backward: {format_bytes(self.held_bytes)}, peak of a step: {format_bytes(self.peak_bytes)}"
        if self.kept_bytes:
            head += f", still alive after backward: {format_bytes(self.kept_bytes)}"
        shown = [row for row in self.rows[:MOST_ROWS] if row.bytes >= _NEGLIGIBLE * self.held_bytes]
        cells = [["module", "operation", "held", "alone", "enough", "why"]]
        for row in shown:
            sizes = ("" if size is None else format_bytes(size) for size in (row.bytes, row.alone, row.least))
            cells.append([row.module, row.operation, *sizes, _reason(row)])
        left = len(self.rows) - len(shown)
        more = [f"… {left} smaller rows"] if left else []
        return "\n".join([head, *aligned(cells, right=(2, 3)), *more, *left_exact_lines(self.left_exact)])

    def plot(self, ax: Axes | None = None, most: int = 25) -> Axes:
        """Plot a bar for the bytes of each operation, with a mark at those that would suffice.

        Args:
            ax: Where to draw; a new figure by default. Needs matplotlib.
            most: Number of bars; the rest is left out.
        """
        from .row_plots import AFTER, BEFORE, plot_bytes

        rows = self.rows[:most]
        names = [f"{row.module}  {row.operation}" for row in rows]
        alone, shared = [row.alone for row in rows], [row.bytes - row.alone for row in rows]
        series = [("held by it alone", AFTER, alone), ("held by others, too", BEFORE, shared)]
        title = f"{format_bytes(self.held_bytes)} held for backward, peak {format_bytes(self.peak_bytes)}"
        return plot_bytes(ax, names, series, title, enough=[row.least for row in rows])


@dataclass(frozen=True)
class MemoryComparison:
    """Two memory reports of one model, module by module. ``str()`` is a table, :meth:`plot` a figure.

    Attributes:
        before: One report.
        after: The other.
    """

    before: MemoryReport
    after: MemoryReport

    @property
    def held_ratio(self) -> float:
        """Ratio of the bytes held, after over before."""
        return self.after.held_bytes / max(1, self.before.held_bytes)

    @property
    def peak_ratio(self) -> float:
        """Ratio of a step's peaks, after over before."""
        return self.after.peak_bytes / max(1, self.before.peak_bytes)

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Bytes held before and after by module, the largest first."""
        found: dict[str, list[int]] = {}
        for number, report in enumerate((self.before, self.after)):
            for row in report.rows:
                found.setdefault(row.module, [0, 0])[number] += row.bytes
        ordered = sorted(found.items(), key=lambda item: -max(item[1]))
        return {name: (before, after) for name, (before, after) in ordered}

    def __str__(self) -> str:
        held, peak = (self.before.held_bytes, self.after.held_bytes), (self.before.peak_bytes, self.after.peak_bytes)
        change, steps = (f"{format_bytes(before)} → {format_bytes(after)}" for before, after in (held, peak))
        head = f"held for backward: {change} ({self.held_ratio:.3f}), peak of a step: {steps} ({self.peak_ratio:.3f})"
        cells = [["module", "before", "after", "ratio"]]
        for name, (first, second) in self.modules.items():
            cells.append([name, format_bytes(first), format_bytes(second), f"{second / first:.3f}" if first else "new"])
        left = len(cells) - 1 - MOST_ROWS
        more = [f"… {left} more"] if left > 0 else []
        return "\n".join([head, *aligned(cells[: MOST_ROWS + 1], right=(1, 2, 3)), *more])

    def plot(self, ax: Axes | None = None, most: int = 25) -> Axes:
        """Plot the bars of both reports, module by module."""
        from .row_plots import AFTER, BEFORE, plot_bytes

        modules = dict(list(self.modules.items())[:most])
        before, after = ([pair[number] for pair in modules.values()] for number in (0, 1))
        first, second = format_bytes(self.before.held_bytes), format_bytes(self.after.held_bytes)
        title = f"held for backward: {first} before, {second} after"
        series = [("before", BEFORE, before), ("after", AFTER, after)]
        return plot_bytes(ax, list(modules), series, title, stacked=False)


def _reason(row: Row) -> str:
    shared = f"also held by {', '.join(row.shared_with[:2])}" if row.shared_with else ""
    if len(row.shared_with) > 2:
        shared += f" and {len(row.shared_with) - 2} more"
    return "; ".join(part for part in (shared, row.why if row.excess or row.least is None else "") if part)
