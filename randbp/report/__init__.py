"""Comparisons of several runs, as a table and as a page: methods that took turns, and runs by keep rate."""

from .damaged import Damaged
from .folder import Results, load_runs
from .groups import Comparison, Group, compare
from .methods_file import METHODS, Methods
from .methods_table import print_methods
from .page import write_page
from .runs import Run
from .table import print_table

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
