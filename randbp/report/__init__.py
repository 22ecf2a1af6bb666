"""Results of several runs side by side: read, grouped by keep rate, as a table and as a page."""

from .damaged import Damaged
from .folder import Results, load_runs
from .groups import Comparison, Group, compare
from .page import write_page
from .runs import Run
from .table import print_table

__all__ = ["Comparison", "Damaged", "Group", "Results", "Run", "compare", "load_runs", "print_table", "write_page"]
