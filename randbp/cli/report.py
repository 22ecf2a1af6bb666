"""``randbp report``: the runs below a folder side by side."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from randbp.report import compare, load_runs, print_table, write_page

from .errors import OptionParser, UsageError

PAGE = "report.html"


def main(argv: Sequence[str]) -> int:
    """Print the table of the runs below a folder and write ``report.html`` into it.

    Args:
        argv: The folder, and options.

    Returns:
        The exit code 0, also if some of the runs failed.

    Raises:
        UsageError: If there is no run, or a summary cannot be read.
    """
    parser = OptionParser(
        prog="randbp report", description="Compare the runs below a folder: a table, and one HTML page."
    )
    parser.add_argument("folder", type=Path, help="folder with runs in it, e.g. runs/digits")
    parser.add_argument("--output", type=Path, help=f"file to write (default: {PAGE} in the folder)")
    options = parser.parse_args(argv)
    try:
        write_report(options.folder, make_console(), options.output)
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
    return 0


def write_report(folder: Path, console: Console, output: Path | None = None) -> Path:
    """Print the table of the runs below a folder, and write the page.

    Args:
        folder: Where the runs are.
        console: Where the table goes.
        output: The file, by default ``report.html`` in the folder.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If there is no run.
    """
    comparison = compare(load_runs(folder))
    page = output or folder / PAGE
    write_page(comparison, page, title=folder.resolve().name)
    print_table(comparison, console)
    console.print(f"report in {page}", highlight=False, markup=False, soft_wrap=True)
    return page


def make_console() -> Console:
    """The terminal; a file or pipe counts as wide enough for the table."""
    return Console() if sys.stdout.isatty() else Console(width=140)
