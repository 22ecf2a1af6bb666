"""The folder of a run: ``<root>/<name>/<version>``."""

import os
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from .errors import UsageError

SHARED = "RANDBP_RUN_FOLDER"  # tells the other processes of a distributed run which folder rank zero has made


def claim(root: Path, name: str, version: str | None, prefix: str = "") -> Path:
    """Make the folder of a new run; no run ever gets the folder of an earlier one.

    Args:
        root: Folder of all runs.
        name: What is run; one folder, or several with ``/`` in between.
        version: Folder below it; by default the next free number.
        prefix: Goes before that number.

    Returns:
        The new, empty folder.

    Raises:
        UsageError: If a name is not one of a folder, or the version is taken.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     [str(claim(Path(root), "digits", None).relative_to(root)) for _ in range(2)]
        ['digits/0', 'digits/1']
    """
    if getattr(rank_zero_only, "rank", 0) != 0 and SHARED in os.environ:
        return Path(os.environ[SHARED])
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"--name={name!r}, expected the name of a folder")
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    if version is not None:
        if Path(version).name != version:
            raise UsageError(f"--version={version!r}, expected the name of a folder")
        folder = parent / version
        try:
            folder.mkdir()
        except FileExistsError:
            raise UsageError(f"--version={version}: the run {folder} exists and is left as it is") from None
    else:
        folder = _next_free(parent, prefix)
    os.environ[SHARED] = str(folder)
    return folder


def _next_free(parent: Path, prefix: str) -> Path:
    taken = [path.name.removeprefix(prefix) for path in parent.iterdir() if path.name.startswith(prefix)]
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=-1)
    while True:
        folder = parent / f"{prefix}{number}"
        try:
            folder.mkdir()  # fails if a run that started at the same moment was faster
            return folder
        except FileExistsError:
            number += 1
