"""Ownership of a sweep's folder: by the running sweep, or by runs that outlive it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UsageError

LOCK = ".lock"
PATIENCE = 5.0
"""Time within which the runs of a killed sweep have ended as well [seconds]."""


@contextmanager
def owned_by_sweep(folder: Path) -> Iterator[int]:
    """Make the folder of a sweep and own it.

    Ownership goes with an open file. Processes that inherit it keep the folder owned, so that no sweep begins to work
    there while a run of an earlier one is alive.

    Args:
        folder: Folder of the sweep.

    Yields:
        The open file.

    Raises:
        UsageError: If the folder cannot be made, or another sweep works there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root, owned_by_sweep(Path(root) / "a" / "b") as file:
        ...     file > 2, (Path(root) / "a" / "b" / "logs").is_dir()
        (True, True)
    """
    new = not folder.exists()
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"{folder}: no folder for a sweep can be made there: {error.strerror}") from error
    try:
        _lock(file, folder)
        yield file
    finally:
        os.close(file)
        if new:  # nothing has come of it
            with suppress(OSError):
                _take_away(folder)


def _lock(file: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UsageError(f"{folder}: another sweep is working there") from None
        time.sleep(0.05)


def _take_away(folder: Path) -> None:
    """Remove a folder that holds only what was created here."""
    if {path.name for path in folder.iterdir()} <= {LOCK, "logs"} and not any((folder / "logs").iterdir()):
        (folder / "logs").rmdir()
        (folder / LOCK).unlink()
        folder.rmdir()
