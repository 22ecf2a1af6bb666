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
    """Make the folder of a sweep and own it through an open file, which is yielded.

    Processes that inherit the file keep the folder owned, so that no sweep begins to work there while a run of an
    earlier one is alive. A folder that is new and of which nothing has come is removed.
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
        with suppress(OSError):
            if new and {path.name for path in folder.iterdir()} <= {LOCK, "logs"}:
                (folder / "logs").rmdir()  # which fails if there is something in it
                (folder / LOCK).unlink()
                folder.rmdir()


def _lock(file: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UsageError(f"{folder}: another sweep is working there") from None
        time.sleep(0.05)
