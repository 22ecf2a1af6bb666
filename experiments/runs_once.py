"""Runs that are each done once: one JSON object per line and run."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def runs_once(
    path: Path, wanted: Iterable[Mapping[str, Any]], do: Callable[[Mapping[str, Any]], Row], told: Callable[[Row], str]
) -> list[Row]:
    """The rows of all wanted runs, in order: those that are written already, and the others, which are done now.

    Args:
        path: The file; a line that was cut short by an interruption is left out.
        wanted: What a run is decided by, as JSON has it; it is the entry ``"run"`` of its row.
        do: From that to the rest of the row.
        told: What is printed of a run that is done.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "runs.jsonl"
        >>> done = runs_once(path, [{"x": 1}, {"x": 2}], lambda run: {"y": run["x"] ** 2}, str)
        {'run': {'x': 1}, 'y': 1}
        {'run': {'x': 2}, 'y': 4}
        >>> runs_once(path, [{"x": 2}], None, str)
        [{'run': {'x': 2}, 'y': 4}]
    """
    lines = path.read_text().split("\n") if path.exists() else []
    written = {json.dumps(row["run"], sort_keys=True): row for row in map(json.loads, lines[:-1])}
    if lines and lines[-1]:
        path.write_text("".join(line + "\n" for line in lines[:-1]))
    rows = []
    for run in wanted:
        key = json.dumps(run, sort_keys=True)
        if key not in written:
            row = json.loads(json.dumps({"run": run, **do(run)}))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(told(row), flush=True)
            written[key] = row
        rows.append(written[key])
    return rows
