"""Comparisons of several runs, as a table and as a page."""

from .comparison_table import print_table
from .damaged import Damaged
from .folder import PREFACE, Results, load_runs
from .groups import Comparison, Group, compare
from .page import write_page
from .run import Run

__all__ = [
    "PREFACE",
    "Comparison",
    "Damaged",
    "Group",
    "Results",
    "Run",
    "compare",
    "load_runs",
    "print_table",
    "write_page",
]
