"""The error for a file with invalid content."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from .printable import printable


class Damaged(ValueError):
    """Raised for a file of a run that cannot be used, with the reason in one line.

    Example:
        >>> str(Damaged(Path("a/summary.json"), "empty"))
        'a/summary.json: empty'
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path, self.what = path, what


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Raise :class:`Damaged` for what goes wrong while a file of this form is read; a missing file is none of it."""
    try:
        yield
    except (FileNotFoundError, Damaged):
        raise
    except OSError as error:
        raise Damaged(path, str(error.strerror)) from error
    except RecursionError:
        raise Damaged(path, "nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise Damaged(path, printable(f"not valid {form}: {' '.join(str(error).split())}")) from error
