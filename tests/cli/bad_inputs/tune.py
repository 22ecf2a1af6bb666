"""``randbp tune``."""

from .rows import Command

TUNE = ("tune", "--config=good.yaml", "--rounds=0", "--draws=2")

ROWS = [
    Command("tune --budget=0", (*TUNE, "--budget=0"), says=("--budget=0.0", "in (0, 1]")),
]
