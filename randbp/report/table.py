"""Tables as data, with one form for the terminal and one for the page."""

from dataclasses import dataclass
from html import escape
from typing import Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column: text or code from the left; numbers from the right, measures with their ratios to exact beside them."""

    heading: str
    kind: Literal["text", "code", "keep", "count", "number", "measure"] = "number"


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the ratio to exact, and whether it is marked as bad in the terminal."""

    text: str
    ratio: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells below headings, which may be missing.

    Example:
        >>> table = Table("main", (Column("run", "code"), Column("time", "measure")), [("", [Cell("a"), Cell("1 s")])])
        >>> table.as_html().partition("<tbody>")[2]
        '<tr><td class=text><code>a</code></td><td>1 s</td><td class=ratio></td></tr></tbody></table></div>'
    """

    look: str  # CSS class of the table
    columns: tuple[Column, ...]
    rows: list[tuple[str, list[Cell]]]  # each with a CSS class or an empty text before its cells

    def for_terminal(self) -> RichTable:
        """The table for a console."""
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for column in self.columns:
            left, narrow = column.kind in ("text", "code"), column.kind in ("keep", "count")
            table.add_column(Text(column.heading), justify="left" if left else "right", no_wrap=narrow)
        for _, cells in self.rows:
            found = ((cell, f"{cell.ratio:>7}" if cell.ratio else "") for cell in cells)
            table.add_row(*(Text.assemble((it.text, "red" if it.bad else ""), (ratio, "cyan")) for it, ratio in found))
        return table

    def as_html(self) -> str:
        """The table for a page."""
        head = "".join(
            f"<th{_ATTRIBUTES_OF_HEADINGS.get(it.kind, '')}>{escape(it.heading.capitalize())}</th>"
            for it in self.columns
        )
        head = f"<thead><tr>{head}</tr></thead>" if any(column.heading for column in self.columns) else ""
        rows = "".join(
            f"<tr{f' class={look}' if look else ''}>{''.join(map(_html_cell, self.columns, cells))}</tr>"
            for look, cells in self.rows
        )
        return f"<div class=scroll><table class={self.look}>{head}<tbody>{rows}</tbody></table></div>"


_ATTRIBUTES_OF_HEADINGS = {"text": " class=text", "code": " class=text", "measure": " colspan=2"}
_CELLS = {
    "code": "<td class=text><code>{}</code></td>",
    "text": "<td class=text>{}</td>",
    "keep": "<td class=keep>{}</td>",
    "measure": "<td>{}</td><td class=ratio>{}</td>",
}


def _html_cell(column: Column, cell: Cell) -> str:
    return _CELLS.get(column.kind, "<td>{}</td>").format(escape(cell.text), cell.ratio)
