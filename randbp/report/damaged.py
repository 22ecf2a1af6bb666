"""The error for a file with invalid content."""

from pathlib import Path


class Damaged(ValueError):
    """Raised for a file of a run that cannot be used, with the reason in one line.

    Args:
        path: The file.
        what: The error in the file.

    Example:
        >>> str(Damaged(Path("a/summary.json"), "empty"))
        'a/summary.json: empty'
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what
