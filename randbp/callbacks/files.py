"""Atomic writes: whenever the process ends, a file is complete or still the old one."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def checked_filename(filename: object) -> str:
    """Check the name of a file in a run's folder: it must be no path."""
    if not isinstance(filename, str) or not filename or Path(filename).name != filename:
        raise ValueError(f"filename={filename!r}: expected a file name without folders")
    return filename


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, atomically; NaN, infinities and what JSON has no type for become strings."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, making folders as needed; readers see the old or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def put_in_place(part: Path, path: Path) -> None:
    """Rename a finished file or folder to its final name, once its content is on the disk."""
    for file in [part] if part.is_file() else [found for found in part.rglob("*") if found.is_file()]:
        _synchronise(file)
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(part, path)
    _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # NaN or infinite
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
