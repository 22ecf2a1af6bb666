"""Checks of a file that a command will write, made before the work begins."""

import tempfile
from pathlib import Path

from .errors import UsageError


def check_output(path: Path, overwrite: bool) -> None:
    """Check that ``--output`` can be written, without leaving anything behind; its folders may be missing."""
    try:
        if path.is_dir():
            raise refused(path, "Is a directory")
        if path.exists() and not overwrite:
            raise UsageError(f"--output={path}: this file exists, expected a new one or --overwrite")
        path.is_symlink()  # complains of a name that is too long, which the others do not
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refused(path, str(error.strerror)) from error


def refused(path: Path | str, why: str) -> UsageError:
    """Make the error that names the option, its value and the file system's message."""
    return UsageError(f"--output={path}: {why}, expected a file to write")
