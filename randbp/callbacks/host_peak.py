"""Peak memory of a training step on a CPU."""

from types import TracebackType

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from randbp.diagnostics import StepPeak


class HostPeak:
    """Highest memory so far: a run's tensors at the start of a step plus the allocator's peak above them.

    Enter it for every step that is to be measured.

    Args:
        trainer: Whose optimisers' state counts.
        module: Whose parameters, buffers and gradients count.

    Attributes:
        bytes: The highest peak, ``None`` before the first step.
        start_bytes: Parameters and buffers at construction.
        source: The measured quantity, in words.
    """

    bytes: int | None
    source: str

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self._step: StepPeak | None = None
        self.bytes, self.start_bytes = None, self._state()
        self.source = "model, gradients and optimiser state, and the peak of PyTorch's CPU allocator above them"

    def __enter__(self) -> "HostPeak":
        self._before = self._state()
        self._step = StepPeak("cpu").__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._step is not None
        self._step.__exit__(kind, error, trace)
        self.bytes = max(self.bytes or 0, self._before + self._step.bytes)

    def _state(self) -> int:
        """Bytes of parameters, buffers, gradients and optimiser state, each storage once."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        tensors += [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
        states = [optimizer.state for optimizer in self._trainer.optimizers]
        tensors += [leaf for leaf in tree_leaves([dict(state) for state in states]) if isinstance(leaf, Tensor)]
        storages: dict[int, torch.UntypedStorage] = {}
        for tensor in tensors:
            if tensor.layout is torch.strided:
                storages[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return sum(storage.nbytes() for storage in storages.values())
