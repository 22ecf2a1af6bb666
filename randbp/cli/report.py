"""``randbp report``: a comparison of the runs below a folder."""

import sys
from collections.abc import Sequence
from errno import EISDIR
from pathlib import Path

from rich.console import Console
from rich.text import Text

from randbp.report import Damaged, compare, load_runs, print_table, write_page
from randbp.report.printable import printable

from .errors import OptionParser, RunError, UsageError

PAGE = "report.html"
DESCRIPTION = """\
Compare the runs below a folder: a table, and one HTML page. Runs are folders with a summary.json, offline runs of W&B,
and CSV files with columns step and loss, and, as far as known, run, seed, estimator, keep, step_seconds, held_bytes,
peak_bytes and metrics. Runs whose files cannot be read are named and left out; the exit code is 0 nevertheless.
"""


def make_parser() -> OptionParser:
    """Make the parser of the command's options."""
    parser = OptionParser(prog="randbp report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="folder with runs in it, e.g. runs/digits, or a CSV file")
    parser.add_argument("--output", type=Path, help=f"file to write (default: {PAGE} in the folder)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the table of the runs below a folder and write ``report.html`` into it; 0 also if some runs failed."""
    options = make_parser().parse_args(argv)
    try:
        write_report(options.folder, make_console(), options.output)
    except (FileNotFoundError, Damaged) as error:
        raise UsageError(printable(str(error))) from error
    return 0


def write_report(folder: Path, console: Console, output: Path | None = None) -> None:
    """Print the table of the runs below a folder, then write the page: ``output``, or ``report.html`` in the folder."""
    comparison = compare(load_runs(folder))
    print_table(comparison, console)
    page = output or (folder if folder.is_dir() else folder.parent) / PAGE
    try:
        if page.is_dir():
            raise IsADirectoryError(EISDIR, "Is a directory", str(page))
        write_page(comparison, page, title=folder.resolve().name)
    except OSError as error:
        if output:
            what = f"--output={printable(str(output))}: {error.strerror}"
            raise UsageError(f"{what}, expected a file to write") from error
        what = f"{printable(str(page))}: {error.strerror}"
        raise RunError(f"{what}: the page could not be written, --output names another place for it") from error
    console.print(Text(f"report in {printable(str(page))}"), highlight=False, soft_wrap=True)


def make_console() -> Console:
    """Make the console; a file or pipe counts as wide enough for the table."""
    return Console() if sys.stdout.isatty() else Console(width=140)
