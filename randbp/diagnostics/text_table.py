"""Tables in plain text, for ``str()`` of a result."""

from collections.abc import Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, rules: Sequence[int] = ()) -> str:
    """Format rows as a table with columns of the necessary width and a rule under the head.

    Args:
        columns: Headings.
        rows: Cells, as many per row as there are headings.
        left: Number of columns that are aligned left; the others are aligned right.
        rules: Numbers of the rows that have a rule above them, too.

    Example:
        >>> print(text_table(["layer", "error"], [["conv1", "0.5"], ["head", "0.25"]]))
        layer  error
        ─────  ─────
        conv1    0.5
        head    0.25
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    lines = [line(columns), rule]
    for number, row in enumerate(rows):
        lines += [rule, line(row)] if number in rules else [line(row)]
    return "\n".join(lines)
