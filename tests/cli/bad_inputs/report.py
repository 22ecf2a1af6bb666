"""``randbp report`` on damaged folders."""

from .rows import Command

ROWS = [
    Command("report missing folder", ("report", "nope"), says=("nope: no such folder",)),
    Command("report on a file", ("report", "good.yaml"), says=("good.yaml: no such folder",)),
]
