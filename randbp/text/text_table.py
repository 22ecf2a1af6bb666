"""Tables in plain text, for ``str()`` of a result."""

from collections.abc import Container, Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, rules: Sequence[int] = ()) -> str:
    """Format rows as a table with a rule under the head, and above the rows whose numbers ``rules`` has.

    The first ``left`` columns are aligned left, the others right.

    Example:
        >>> print(text_table(["layer", "error"], [["conv1", "0.5"], ["head", "0.25"]]))
        layer  error
        ─────  ─────
        conv1    0.5
        head    0.25
    """
    cells = [columns, *rows]
    rule = "  ".join("─" * max(map(len, column)) for column in zip(*cells, strict=True))
    head, *lines = aligned(cells, range(left, len(columns)))
    return "\n".join([head, rule, *(f"{rule}\n{line}" if n in rules else line for n, line in enumerate(lines))])


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Format rows as lines with columns two blanks apart, aligned left unless their numbers are in ``right``.

    Example:
        >>> aligned([["a", "10"], ["bcd", "9"]], right=[1])
        ['a    10', 'bcd   9']
    """
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width, pad = max(map(len, column)), str.rjust if number in right else str.ljust
        columns.append([pad(cell, width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
