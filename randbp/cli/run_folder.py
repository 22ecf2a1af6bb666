"""The folder of a run, ``<root>/<name>/<version>``, or of a sweep, ``<root>/<name>``, and its owner."""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from .errors import UsageError

SHARED = "RANDBP_RUN_FOLDER"  # tells the other processes of a distributed run which folder rank zero has made
LOCK = ".lock"
PATIENCE = 5.0  # time for another process to check whether the folder is owned, or to end if it was killed [seconds]
LONGEST = 255  # longest name in the usual file systems [bytes]


def claim(root: Path, name: str, version: str | None, prefix: str = "", resume: bool = False) -> Path:
    """Make the folder ``root/name/version`` of a run; the version is the next free number behind a prefix by default.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     [str(claim(Path(root), "digits", None).relative_to(root)) for _ in range(2)]
        ['digits/0', 'digits/1']
    """
    if not is_rank_zero() and SHARED in os.environ:
        return Path(os.environ[SHARED])
    check_name("--name", name, several=True)
    if version is not None:
        check_name("--version", version)
    if not is_rank_zero():  # started by a cluster or torchrun, not by rank zero
        if version is None:
            raise UsageError("--version: missing, expected a name that all processes of the run are given")
        return root / name / version
    parent = root / name
    folder = parent if version is None else parent / version
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if version is None:
            folder = _next_free(parent, prefix)
        else:
            folder.mkdir(exist_ok=resume)
    except FileExistsError as error:
        if version is not None and folder.is_dir():
            message = f"--version={version}: the run {folder} exists and is left as it is (--resume goes on with it)"
            raise UsageError(message) from None
        raise UsageError(f"trainer.default_root_dir={str(root)!r}: {error.filename} is not a folder") from None
    except OSError as error:
        reason = f"{error.filename or parent}: {error.strerror}"
        raise UsageError(f"trainer.default_root_dir={str(root)!r}: no folder for runs ({reason})") from error
    os.environ[SHARED] = str(folder)
    return folder


def check_name(option: str, name: str, several: bool = False) -> None:
    """Check that the name of a folder, or of several with ``/`` in between, does not lead out of its parent folder."""
    parts = name.split("/") if several else [name]
    if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
        raise UsageError(f"{option}={name!r}, expected the name of a folder")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise UsageError(f"{option}={name!r}, expected the name of a folder without control characters")
    size = max(len(part.encode()) for part in parts)
    if size > LONGEST:
        raise UsageError(f"{option}='{name[:40]}…' has {size} bytes, expected the name of a folder, {LONGEST} at most")


@contextmanager
def owned(folder: Path, other: str = "process is training", patience: float | None = None) -> Iterator[None]:
    """Own a folder on rank zero until the block or the process ends; an error says what an ``other`` owner does."""
    if not is_rank_zero():
        yield
        return
    try:
        lock = FileLock(folder / LOCK, timeout=PATIENCE if patience is None else patience).acquire()
    except Timeout:
        raise UsageError(f"{folder}: another {other} there") from None
    with lock:
        yield


def is_rank_zero() -> bool:
    """Whether this is the only or the first process of a run."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def withdraw(folder: Path) -> None:
    """Remove the folder of a run that has not begun, unless it holds something."""
    with suppress(OSError):
        if all(path.name == LOCK for path in folder.iterdir()):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def free_name(root: Path, name: str) -> str:
    """The name, followed by the next free number if there are already results of that name."""
    candidates = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(it for it in candidates if not (root / it).exists())


def _next_free(parent: Path, prefix: str) -> Path:
    taken = [path.name.removeprefix(prefix) for path in parent.iterdir() if path.name.startswith(prefix)]
    for number in count(1 + max((int(name) for name in taken if name.isdecimal()), default=-1)):
        with suppress(FileExistsError):  # a run that started at the same moment was faster
            (parent / f"{prefix}{number}").mkdir()
            return parent / f"{prefix}{number}"
    raise AssertionError  # numbers do not end
