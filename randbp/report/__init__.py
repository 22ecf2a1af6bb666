"""Comparisons of several runs, as a table and as a page: methods that took turns, and runs by keep rate."""

from .comparison_table import print_table
from .damaged import Damaged
from .folder import Results, load_runs
from .groups import Comparison, Group, compare
from .methods_file import METHODS, Methods
from .methods_part import print_methods
from .page import write_page
from .run import Run

__all__ = [
    "METHODS",
    "Comparison",
    "Damaged",
    "Group",
    "Methods",
    "Results",
    "Run",
    "compare",
    "load_runs",
    "print_methods",
    "print_table",
    "write_page",
]
