"""``randbp sweep`` and its files."""

from .rows import Command

ROWS = [
    Command("sweep missing", ("sweep", "none.yaml"), says=("none.yaml: No such file",)),
    Command("sweep dir", ("sweep", "."), says=(".: Is a directory",)),
]
