"""What a training run was, cost and reached, in one JSON file beside its metrics."""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from randbp.diagnostics import describe_environment

from .files import checked_filename, write_json
from .summary import describe_estimators, describe_run, not_finite

SUMMARY_FORMAT = 1
"""Version of the layout of ``summary.json``; a change of meaning raises it."""


class RunSummary(Callback):
    """Write a run's settings, environment, metrics and costs into one file in its folder.

    The folder is ``trainer.log_dir``, else ``trainer.default_root_dir``; the file is written atomically, by rank zero
    alone: at the start with ``"status": "running"``, after each epoch, with ``"finished"`` at the end of ``fit`` and of
    ``test``, and with ``"failed"`` after an exception. ``"not_finite"`` names the metrics that are NaN or infinite. A
    training that is resumed in the folder of the interrupted one continues its file. Costs are those of the callback
    that has a method ``costs``: :class:`~randbp.callbacks.CostMonitor`, which adds a ``RunSummary`` if there is none.

    Args:
        filename: Name of the file.

    Attributes:
        summary: The content of the file.
        continues: Whether the latest checkpoint was of a training in the same folder.
        steps: Training batches seen, those of an interrupted training that this one continues included.

    Raises:
        ValueError: If the file name is a path.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RunSummary()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, filename: str = "summary.json") -> None:
        self.filename = checked_filename(filename)
        self.summary: dict[str, Any] = {"format": SUMMARY_FORMAT, "status": "new"}
        self._path: Path | None = None
        self._earlier: dict[str, Any] = {}
        self.continues = False
        self.steps, self._fit_began = 0, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, on all ranks at once because that takes a broadcast."""
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known beforehand."""
        earlier, self._earlier = self._earlier, {}
        self.steps = earlier.get("steps", 0)
        self._fit_began = time.perf_counter() - earlier.get("fit_seconds", 0.0)
        self.summary = {
            "format": SUMMARY_FORMAT,
            "status": "running",
            "error": None,
            "started": earlier.get("started", _now()),
            "updated": _now(),
            **_described(trainer, pl_module),
            "progress": {
                "epochs": earlier.get("epochs", 0),
                "max_epochs": trainer.max_epochs,
                "steps": self.steps,
            },
            "cost": {},
            "metrics": dict(earlier.get("metrics", {})),
        }
        self._write(trainer, metrics=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run again, now that its data are loaded."""
        self.summary["run"] = describe_run(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step."""
        self.steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write costs and metrics so far."""
        self.summary["progress"]["epochs"] = trainer.current_epoch + 1
        self._add_costs(trainer)
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the result of the training, even if it was already over when it was resumed."""
        self.summary["run"] = describe_run(trainer, pl_module)
        self._add_costs(trainer)
        self.summary |= {"status": "finished", "fit_seconds": time.perf_counter() - self._fit_began}
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add results so far, for a training that continues from this checkpoint."""
        if "progress" not in self.summary:
            return
        self._add_metrics(trainer)
        checkpoint["callbacks"][self.state_key] = {
            "steps": self.steps,
            "fit_seconds": time.perf_counter() - self._fit_began,
            "started": self.summary["started"],
            "epochs": self.summary["progress"]["epochs"],
            "metrics": dict(self.summary["metrics"]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember earlier results until fitting starts, if the file is there that is to be continued."""
        self.continues = self._path is not None and self._path.exists()
        self._earlier = state_dict if self.continues else {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the summary of the training; if another process wrote it, read it back."""
        if self.summary["status"] != "new" or self._path is None:
            return
        with suppress(OSError, ValueError):
            self.summary = json.loads(self._path.read_text())
        self.summary = _described(trainer, pl_module) | self.summary

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test metrics; the costs stay those of the training."""
        self.summary |= {"status": "finished", "error": None}
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what is known so far; the exception is not handled here."""
        alone = trainer.world_size == 1  # other ranks may never answer a broadcast or reduction again
        if self._path is None and alone:
            self.setup(trainer, pl_module, "")
        message = str(exception).strip().splitlines()
        self.summary |= {"status": "failed", "error": ": ".join([type(exception).__name__, *message[:1]])}
        try:
            if "fit_seconds" not in self.summary:
                self._add_costs(trainer)
            if alone:
                self._add_metrics(trainer)
        except Exception as error:  # a broken device must not hide what broke it
            rank_zero_warn(f"what the failed run had measured last is lost: {error}")
        self._write(trainer, metrics=False)

    def _add_costs(self, trainer: Trainer) -> None:
        if "progress" not in self.summary:
            return
        self.summary["progress"]["steps"] = self.steps
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "costs"):
                self.summary["cost"] = callback.costs()

    def _add_metrics(self, trainer: Trainer) -> None:
        known = self.summary.setdefault("metrics", {})
        known.update({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.summary["not_finite"] = not_finite({name: float(value) for name, value in known.items()})

    def _write(self, trainer: Trainer, metrics: bool = True) -> None:
        if metrics:
            self._add_metrics(trainer)
        if not trainer.is_global_zero or self._path is None:
            return
        self.summary["updated"] = _now()
        try:
            write_json(self._path, self.summary)
        except OSError as error:  # a full disk must not end a training that could go on
            rank_zero_warn(f"{self._path} could not be written: {error}")


def _described(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    return {
        "run": describe_run(trainer, module),
        "estimators": describe_estimators(trainer),
        "environment": describe_environment(trainer.strategy.root_device),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
