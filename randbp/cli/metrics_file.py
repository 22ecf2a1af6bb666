"""The run's ``metrics.csv``: never torn, and continued when the run is resumed."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from randbp.callbacks.files import write_text

from .run_folder import is_rank_zero


class MetricsFile(CSVLogger):
    """Lightning's CSV logger, except that it continues an existing ``metrics.csv`` in a run's folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder.parent.parent), name=folder.parent.name, version=folder.name)

    @property
    def experiment(self) -> Any:
        """The writer of the file; in processes other than the first, an object that does nothing."""
        if self._experiment is None and is_rank_zero():
            self._experiment = Rows(self.log_dir)
        return super().experiment

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which reads the file anew."""
        self.save()
        return self.__dict__ | {"_experiment": None}


class Rows(ExperimentWriter):
    """The rows of the file in a folder, of which those that are logged since the last :meth:`save` are held back."""

    def __init__(self, folder: str) -> None:
        self.log_dir = folder
        self.path = Path(folder) / self.NAME_METRICS_FILE
        self.metrics: list[dict[str, float]] = []
        self.hparams: dict[str, Any] = {}
        self.fields, rows = self._read()
        self.count = len(rows)

    def save(self) -> None:
        """Append the rows that are held back, or rewrite the file if it lacks some of their columns."""
        rows, self.metrics = self.metrics, []
        if not rows:
            return
        fields = sorted({*self.fields, *(name for row in rows for name in row)})
        if fields == self.fields:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, fields).writerows(rows)
            self.count += len(rows)
        else:
            self._write(fields, [*self._read()[1], *rows])

    def keep(self, count: int, fields: list[str]) -> None:
        """Keep the first rows and their columns, and drop the rest, which will be logged again."""
        names, rows = self._read()
        if count <= len(rows) and set(fields) <= set(names):
            self._write(fields, [{name: row[name] for name in fields} for row in rows[:count]])

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Read columns and all complete rows: the last one may be torn if the process was killed while writing."""
        if not self.path.exists():
            return [], []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        header, *rows = [*csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))] or [[]]
        return header, [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]

    def _write(self, fields: list[str], rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fields)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self.fields, self.count = fields, len(rows)


class KeepRows(Callback):
    """Note in each checkpoint how long the metrics file is, and go back to that length when a run is resumed."""

    def __init__(self, logger: MetricsFile) -> None:
        self.logger = logger

    def state_dict(self) -> dict[str, Any]:
        """The number of rows and columns that are in the file or held back."""
        rows = self.logger.experiment
        if not isinstance(rows, Rows):
            return {}
        rows.save()
        return {"rows": rows.count, "fields": rows.fields}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Drop later rows, if the checkpoint belongs to this file."""
        rows = self.logger.experiment
        if isinstance(rows, Rows) and rows.count and state_dict:
            rows.keep(state_dict["rows"], state_dict["fields"])
