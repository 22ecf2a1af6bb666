"""A file that does not hold what it should."""

from pathlib import Path


class Damaged(ValueError):
    """A file among the runs that cannot be used, and why, in one line.

    Args:
        path: The file.
        what: What is wrong with it.

    Example:
        >>> str(Damaged(Path("a/summary.json"), "empty"))
        'a/summary.json: empty'
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what
