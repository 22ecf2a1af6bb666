"""Rows on disk as soon as they are measured: a run that breaks off goes on where it stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .harness import RUNS

Row = dict[str, Any]


class Journal:
    """A file of JSON lines, one row each, that is complete after every row.

    Args:
        name: The file is ``NAME.jsonl``.
        keys: Columns that tell one row from another; of rows that agree in them the last counts.
        folder: Where the file lies.
    """

    def __init__(self, name: str, keys: Sequence[str], folder: Path | None = None) -> None:
        self.path, self.keys = (folder or RUNS) / f"{name}.jsonl", tuple(keys)
        self._rows: dict[tuple[Any, ...], Row] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self._rows[self._key(row)] = row

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in self.keys)

    def __contains__(self, row: Row) -> bool:
        return self._key(row) in self._rows

    def add(self, row: Row) -> None:
        """Write one row."""
        self._rows[self._key(row)] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, **equal: Any) -> list[Row]:
        """All rows whose columns have these values."""
        return [row for row in self._rows.values() if all(row[key] == value for key, value in equal.items())]
