"""Costs and results of a training run, in one JSON file beside its metrics."""

import json
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from randbp.diagnostics import (
    HeldTensors,
    PeakMemory,
    ProcessorWait,
    StepTimer,
    describe_environment,
    held_for_backward,
    quartiles,
)

from ..layers.integers import as_integer
from .files import checked_filename, write_json
from .host_peak import HostPeak
from .summary import describe_estimators, describe_run, not_finite

SUMMARY_FORMAT = 1
"""Version of the layout of ``summary.json``; a change of meaning raises it."""

_CONTINUED = ("steps", "held_bytes", "peak_bytes")


class CostMonitor(Callback):
    """Measure time per step, bytes held for backward and peak memory of a training run.

    The numbers go to the Trainer's loggers after each epoch, and together with the run's metrics, settings
    and environment into one file in the run's folder (``trainer.log_dir``, else
    ``trainer.default_root_dir``), written atomically. It is written at the start with ``"status": "running"``,
    updated after each epoch, and completed with ``"finished"`` at the end of ``fit`` and of ``test``, or with
    ``"failed"`` after an exception; ``"not_finite"`` names the metrics that are NaN or infinite. A training that is
    resumed in the folder of the interrupted one continues its file: the steps of both count. Only rank zero writes, and
    only its times, bytes and peaks are measured.

    The following costs are logged and written:

    - ``cost/step_seconds``: median over training steps (batches) of the time from ``on_train_batch_start`` to
      ``on_train_batch_end``: forward, backward and update, without data loading. The first ``warmup_steps``
      and the steps on which bytes are measured do not count.
    - ``cost/held_bytes``: bytes that autograd holds at the start of the backward pass, each storage once, without
      parameters and buffers. They are measured on the first step and on every ``held_every_n_steps``-th step after it;
      the largest number counts.
    - ``cost/peak_bytes``: peak memory. On a GPU it is that of PyTorch's allocator since the start of ``fit``
      (:class:`randbp.diagnostics.PeakMemory`). Elsewhere it is measured on the same steps as the bytes: parameters,
      buffers, gradients and optimiser state at the step's start plus the allocator's peak above them
      (:class:`randbp.diagnostics.StepPeak`). That counts only tensors, not the other memory of the process.

    Args:
        warmup_steps: Number of first steps whose time does not count.
        held_every_n_steps: Number of steps between measurements of the bytes held for backward.
        filename: Name of the file in the run's folder.

    Raises:
        ValueError: If a number is out of range or the file name is a path.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = CostMonitor(warmup_steps=10)
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
        >>> monitor.summary["status"]  # what `summary.json` will hold
        'new'
    """

    def __init__(self, warmup_steps: int = 5, held_every_n_steps: int = 100, filename: str = "summary.json") -> None:
        self.warmup_steps = _checked_steps("warmup_steps", warmup_steps, 0)
        self.held_every_n_steps = _checked_steps("held_every_n_steps", held_every_n_steps, 1)
        self.filename = checked_filename(filename)
        self.summary: dict[str, Any] = {"format": SUMMARY_FORMAT, "status": "new"}
        self._path: Path | None = None
        self._timer: StepTimer | None = None
        self._peak: PeakMemory | HostPeak | None = None
        self._wait: ProcessorWait | None = None
        self._held: HeldTensors | None = None
        self._hooks = ExitStack()
        self._held_bytes: int | None = None
        self._peak_before: int | None = None
        self._steps = 0
        self._fit_began = 0.0
        self._earlier: dict[str, Any] | None = None

    # Training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, on all ranks at once because that takes a broadcast."""
        self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        device = trainer.strategy.root_device
        earlier, self._earlier = self._earlier, None
        if earlier is None or self._path is None or not self._path.exists():
            earlier = {"steps": 0, "seconds": [], "held_bytes": None, "peak_bytes": None, "fit_seconds": 0.0}
        self._timer, self._wait = StepTimer(device, earlier["seconds"]), ProcessorWait()
        self._peak = PeakMemory(device) if device.type == "cuda" else HostPeak(trainer, pl_module)
        self._steps, self._held_bytes, self._peak_before = (earlier[name] for name in _CONTINUED)
        self._fit_began = time.perf_counter() - earlier["fit_seconds"]
        self.summary = {
            "format": SUMMARY_FORMAT,
            "status": "running",
            "error": None,
            "started": earlier.get("started", _now()),
            "updated": _now(),
            "run": describe_run(trainer, pl_module),
            "estimators": describe_estimators(trainer),
            "progress": {
                "epochs": earlier.get("epochs", 0),
                "max_epochs": trainer.max_epochs,
                "steps": self._steps,
            },
            "cost": {},
            "metrics": dict(earlier.get("metrics", {})),
            "environment": describe_environment(device),
        }
        self._write(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run again, now that its data are loaded."""
        self.summary["run"] = describe_run(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock or, on some steps, the count of bytes."""
        if self._steps % self.held_every_n_steps == 0:
            live = [*pl_module.parameters(), *pl_module.buffers()]
            self._held = self._hooks.enter_context(held_for_backward(exclude=live))
            if isinstance(self._peak, HostPeak):
                self._hooks.enter_context(self._peak)
        elif self._steps >= self.warmup_steps and self._timer is not None:
            self._timer.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Read how many bytes are held, at the moment when all of them are."""
        if self._held is not None:
            self._held_bytes = max(self._held_bytes or 0, self._held.bytes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock or the count."""
        if self._timer is not None:
            self._timer.stop()
        self._stop_counting()
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the costs so far."""
        self.summary["progress"]["epochs"] = trainer.current_epoch + 1
        self._add_costs()
        self._add_metrics(trainer)
        self._write(trainer)
        names = ("step_seconds", "held_bytes", "peak_bytes")
        costs = {f"cost/{name}": value for name in names if (value := self.summary["cost"][name]) is not None}
        for logger in trainer.loggers:
            logger.log_metrics(costs, step=trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the result of the training, even if it was already over when it was resumed."""
        self.summary["run"] = describe_run(trainer, pl_module)
        self._add_costs()
        self._add_metrics(trainer)
        self.summary["status"] = "finished"
        self.summary["fit_seconds"] = time.perf_counter() - self._fit_began
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add costs and results so far, for a training that continues from this checkpoint."""
        if self._timer is None or self._peak is None:
            return
        self._add_metrics(trainer)
        checkpoint["callbacks"][self.state_key] = {
            "steps": self._steps,
            "held_bytes": self._held_bytes,
            "peak_bytes": self._highest_peak(),
            "seconds": self._timer.seconds(),
            "fit_seconds": time.perf_counter() - self._fit_began,
            "started": self.summary["started"],
            "epochs": self.summary["progress"]["epochs"],
            "metrics": dict(self.summary["metrics"]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember costs and results until fitting starts."""
        self._earlier = state_dict

    # Testing

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the summary of the training; if another process wrote it, read it back."""
        if self.summary["status"] != "new" or self._path is None:
            return
        with suppress(OSError, ValueError):
            self.summary = json.loads(self._path.read_text())
        self.summary.setdefault("run", describe_run(trainer, pl_module))
        self.summary.setdefault("estimators", describe_estimators(trainer))
        self.summary.setdefault("environment", describe_environment(trainer.strategy.root_device))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test metrics; the costs stay those of the training."""
        self._add_metrics(trainer)
        self.summary["status"] = "finished"
        self.summary["error"] = None
        self._write(trainer)

    # Failure

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what is known so far; the exception is not handled here."""
        self._stop_counting()
        alone = trainer.world_size == 1  # other ranks may never answer a broadcast or reduction again
        if self._path is None and alone:
            self._path = Path(trainer.log_dir or trainer.default_root_dir) / self.filename
        message = str(exception).strip().splitlines()
        self.summary["status"] = "failed"
        self.summary["error"] = ": ".join([type(exception).__name__, *message[:1]])
        try:
            if "fit_seconds" not in self.summary:
                self._add_costs()
            if alone:
                self._add_metrics(trainer)
        except Exception as error:  # a broken device must not hide what broke it
            rank_zero_warn(f"what the failed run had measured last is lost: {error}")
        self._write(trainer)

    # Bookkeeping

    def _stop_counting(self) -> None:
        self._held = None
        self._hooks.close()

    def _costs(self) -> dict[str, Any]:
        assert self._timer is not None and self._peak is not None and self._wait is not None
        seconds = self._timer.seconds()
        q25, median, q75 = quartiles(seconds) if seconds else (None, None, None)
        return {
            "step_seconds": median,
            "step_seconds_q25": q25,
            "step_seconds_q75": q75,
            "steps_timed": len(seconds),
            "waiting_threads": self._wait.threads,
            "held_bytes": self._held_bytes,
            "peak_bytes": self._highest_peak(),
            "start_bytes": self._peak.start_bytes,
            "peak_source": self._peak.source,
        }

    def _highest_peak(self) -> int | None:
        peaks = (self._peak_before, None if self._peak is None else self._peak.bytes)
        return max((peak for peak in peaks if peak is not None), default=None)

    def _add_costs(self) -> None:
        if self._timer is not None:
            self.summary["cost"] = self._costs()
            self.summary["progress"]["steps"] = self._steps

    def _add_metrics(self, trainer: Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        known = self.summary.setdefault("metrics", {})
        known.update(metrics)
        self.summary["not_finite"] = not_finite({name: float(value) for name, value in known.items()})

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self._path is None:
            return
        self.summary["updated"] = _now()
        try:
            write_json(self._path, self.summary)
        except OSError as error:  # a full disk must not end a training that could go on
            rank_zero_warn(f"{self._path} could not be written: {error}")


def _checked_steps(name: str, value: object, least: int) -> int:
    number = as_integer(value)
    if number is None or number < least:
        raise ValueError(f"{name}={value!r}: expected a number of steps, at least {least}")
    return number


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
