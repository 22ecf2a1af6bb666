"""``randbp report``: a comparison of the runs below a folder."""

import sys
from collections.abc import Sequence
from errno import EISDIR
from pathlib import Path

from rich.console import Console
from rich.text import Text

from randbp.report import Comparison, Damaged, compare, load_runs, print_methods, print_table, write_page
from randbp.report.printable import printable

from .errors import OptionParser, RunError, UsageError

PAGE = "report.html"
DESCRIPTION = """\
Compare the runs below a folder: a table, and one HTML page. Runs whose files cannot be read are named and left out; the
exit code is 0 nevertheless.
"""


def main(argv: Sequence[str]) -> int:
    """Print the table of the runs below a folder and write ``report.html`` into it.

    Args:
        argv: The folder, and options.

    Returns:
        The exit code 0, also if some of the runs failed, and if files that cannot be read were left out: those are
        named below the table and on the page.

    Raises:
        UsageError: If there is no run that can be read, or ``--output`` cannot be written.
        RunError: If the page cannot be written into the folder. The table is printed by then.
    """
    parser = OptionParser(prog="randbp report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder with runs in it, e.g. runs/digits")
    parser.add_argument("--output", type=Path, help=f"file to write (default: {PAGE} in the folder)")
    options = parser.parse_args(argv)
    try:
        comparison = compare(load_runs(options.folder))
    except (FileNotFoundError, Damaged) as error:
        raise UsageError(printable(str(error))) from error
    tell(comparison, options.folder, make_console(), options.output)
    return 0


def write_report(folder: Path, console: Console, output: Path | None = None) -> Path:
    """Print the table of the runs below a folder, and write the page.

    Args:
        folder: The folder with the runs.
        console: The console for the table.
        output: The file, by default ``report.html`` in the folder.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If there is no run.
        Damaged: If there is none that can be read.
        UsageError: If ``output`` cannot be written.
        RunError: If the page cannot be written into the folder. The table is printed by then.
    """
    return tell(compare(load_runs(folder)), folder, console, output)


def tell(comparison: Comparison, folder: Path, console: Console, output: Path | None = None) -> Path:
    """Print the table of a comparison, then write its page.

    Returns:
        The file written.

    Raises:
        UsageError: If ``output`` cannot be written.
        RunError: If the page cannot be written into the folder.
    """
    if comparison.methods:
        print_methods(comparison.methods, console)
    print_table(comparison, console)
    page = output or folder / PAGE
    try:
        if page.is_dir():
            raise IsADirectoryError(EISDIR, "Is a directory", str(page))
        write_page(comparison, page, title=folder.resolve().name)
    except OSError as error:
        if output:
            raise UsageError(
                f"--output={printable(str(output))}: {error.strerror}, expected a file to write"
            ) from error
        what = f"{printable(str(page))}: {error.strerror}"
        raise RunError(f"{what}: the page could not be written, --output names another place for it") from error
    console.print(Text(f"report in {printable(str(page))}"), highlight=False, soft_wrap=True)
    return page


def make_console() -> Console:
    """Make the console; a file or pipe counts as wide enough for the table."""
    return Console() if sys.stdout.isatty() else Console(width=140)
