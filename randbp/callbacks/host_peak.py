"""Peak memory of training steps on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer

from randbp.diagnostics import StepPeak
from randbp.diagnostics.storages import storages, tensors_in


class HostPeak:
    """Highest memory so far: a run's tensors at the start of a step plus the allocator's peak above them.

    Like :class:`randbp.diagnostics.PeakMemory`, it has ``bytes``, ``start_bytes`` and ``source``.
    """

    bytes: int | None = None
    source = "model, gradients and optimiser state, and the peak of PyTorch's CPU allocator above them"

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self.start_bytes = self._state()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure the step within the block."""
        before = self._state()
        with StepPeak("cpu") as peak:
            yield
        self.bytes = max(self.bytes or 0, before + peak.bytes)

    def _state(self) -> int:
        """Bytes of parameters, buffers, gradients and optimiser state, each storage once."""
        parameters = list(self._module.parameters())
        optimised = [dict(optimizer.state) for optimizer in self._trainer.optimizers]
        tensors = tensors_in([parameters, list(self._module.buffers()), [p.grad for p in parameters], optimised])
        return sum(storage.nbytes() for storage in storages(tensors).values())
