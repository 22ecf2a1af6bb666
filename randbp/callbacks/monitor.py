"""Costs of a training run: time per step, bytes held for backward and peak memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from randbp._torch.out_of_memory import is_out_of_memory
from randbp.diagnostics import HeldTensors, PeakMemory, ProcessorWait, StepPeak, StepTimer, held_for_backward, quartiles

from ..layers.integers import as_integer
from .memory_advice import add_memory_advice, release, state_bytes
from .run_summary import RunSummary


class CostMonitor(Callback):
    """Measure time per step, bytes held for backward and peak memory of a training run.

    The numbers go to the Trainer's loggers after each epoch, and into the run's summary: if no other callback writes
    one, this one adds a :class:`~randbp.callbacks.RunSummary` to the Trainer. In a training that is resumed in the
    folder of the interrupted one the steps of both count. Only rank zero's times, bytes and peaks are measured.

    If memory runs out, the exception gets a note (below its traceback): what the step would take without and with each
    preset, and the largest batch that fits. For that, the tensors of the failed step and all gradients are given up.
    With several processes, several optimisers or manual optimisation there is no such note.

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
        filename: Name of the summary's file in the run's folder.

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
        self._summary = RunSummary(filename)
        self._timer: StepTimer | None = None
        self._peak: PeakMemory | _HostPeak | None = None
        self._wait: ProcessorWait | None = None
        self._held: HeldTensors | None = None
        self._hooks = ExitStack()
        self._earlier: dict[str, Any] = {}
        self._batch: Any = None
        self._held_bytes: int | None = None
        self._peak_before: int | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary so far."""
        return self._summary.summary

    @property
    def filename(self) -> str:
        """Name of the summary's file."""
        return self._summary.filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the callback that writes the run's summary, or add one."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if isinstance(callback, RunSummary)]
        if not others:
            callbacks.insert(callbacks.index(self) + 1, self._summary)  # so that Lightning calls it next
        else:
            self._summary = others[0]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        device = trainer.strategy.root_device
        earlier, self._earlier = (self._earlier if self._summary.continues else {}), {}
        self._timer, self._wait = StepTimer(device, earlier.get("seconds", [])), ProcessorWait()
        self._peak = PeakMemory(device) if device.type == "cuda" else _HostPeak(trainer, pl_module)
        self._held_bytes, self._peak_before = earlier.get("held_bytes"), earlier.get("peak_bytes")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock or, on some steps, the count of bytes."""
        self._batch = batch
        if self._summary.steps % self.held_every_n_steps == 0:
            live = [*pl_module.parameters(), *pl_module.buffers()]
            self._held = self._hooks.enter_context(held_for_backward(exclude=live))
            if isinstance(self._peak, _HostPeak):
                self._hooks.enter_context(self._peak.step())
        elif self._summary.steps >= self.warmup_steps and self._timer is not None:
            self._timer.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Read how many bytes are held, at the moment when all of them are."""
        if self._held is not None:
            self._held_bytes = max(self._held_bytes or 0, self._held.bytes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock or the count."""
        self._batch = None
        if self._timer is not None:
            self._timer.stop()
        self._stop_counting()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the costs so far."""
        found = self.costs()
        names = ("step_seconds", "held_bytes", "peak_bytes")
        costs = {f"cost/{name}": found[name] for name in names if found[name] is not None}
        for logger in trainer.loggers:
            logger.log_metrics(costs, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the costs so far, for a training that continues from this checkpoint."""
        if self._timer is not None:
            costs = {name: self.costs()[name] for name in ("held_bytes", "peak_bytes")}
            checkpoint["callbacks"][self.state_key] = costs | {"seconds": self._timer.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember earlier costs until fitting starts."""
        self._earlier = state_dict

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop to measure, and have the failure written even if it came before everything else."""
        batch, self._batch = self._batch, None
        advise = batch is not None and is_out_of_memory(exception)
        if advise:
            release(exception, pl_module)
        self._stop_counting()
        self.setup(trainer, pl_module, "")
        if advise:
            add_memory_advice(exception, trainer, pl_module, batch)

    def costs(self) -> dict[str, Any]:
        """The costs so far, by name; none before the start."""
        if self._timer is None or self._peak is None or self._wait is None:
            return {}
        seconds = self._timer.seconds()
        q25, median, q75 = quartiles(seconds) if seconds else (None, None, None)
        peaks = [peak for peak in (self._peak_before, self._peak.bytes) if peak is not None]
        return {
            "step_seconds": median,
            "step_seconds_q25": q25,
            "step_seconds_q75": q75,
            "steps_timed": len(seconds),
            "waiting_threads": self._wait.threads,
            "held_bytes": self._held_bytes,
            "peak_bytes": max(peaks, default=None),
            "start_bytes": self._peak.start_bytes,
            "peak_source": self._peak.source,
        }

    def _stop_counting(self) -> None:
        self._held = None
        self._hooks.close()


class _HostPeak:
    """Like :class:`PeakMemory`, of a run's tensors at the start of a step and the allocator's peak above them."""

    bytes: int | None = None
    source = "model, gradients and optimiser state, and the peak of PyTorch's CPU allocator above them"

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self.start_bytes = state_bytes(trainer, module)

    @contextmanager
    def step(self) -> Iterator[None]:
        before = state_bytes(self._trainer, self._module)
        with StepPeak("cpu") as peak:
            yield
        self.bytes = max(self.bytes or 0, before + peak.bytes)


def _checked_steps(name: str, value: object, least: int) -> int:
    number = as_integer(value)
    if number is None or number < least:
        raise ValueError(f"{name}={value!r}: expected a number of steps, at least {least}")
    return number
