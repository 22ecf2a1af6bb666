"""What held the memory that has run out in a training, and which preset would fit."""

import gc
import inspect
import traceback
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from .._torch.storages import storages, tensors_in
from ..diagnostics.peak_memory import available_bytes
from ..tune import Advice
from ..tune.model_advice import advice_on
from .step_gradients import muted
from .tensor_dropout import TensorDropout


def add_memory_advice(exception: BaseException, trainer: Trainer, module: LightningModule, batch: Any) -> None:
    """Add a note to an exception: a table of what fits, measured on small parts of the batch that did not.

    The failed step's tensors, which the frames of the exception keep alive, are given up for that.
    """
    if trainer.world_size > 1 or not module.automatic_optimization:
        return  # other processes are not there to take part in a step; one step has no one loss
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TensorDropout):
            callback.on_exception(trainer, module, exception)  # the model as it is
    traceback.clear_frames(exception.__traceback__)
    try:
        advice = _advice(trainer, module, batch)
    except Exception as error:  # it must not hide what has happened
        exception.add_note(f"randbp: what would fit could not be measured: {type(error).__name__}: {error}")
        return
    if advice is not None:
        exception.add_note(f"\nrandbp: what fits into the memory that there is:\n\n{advice}")


def state_bytes(trainer: Trainer, module: LightningModule, *others: Any) -> int:
    """Bytes of parameters, buffers, gradients and optimiser state, and of other tensors, each storage once."""
    parameters = list(module.parameters())
    optimised = [dict(optimizer.state) for optimizer in trainer.optimizers]
    tensors = tensors_in([parameters, list(module.buffers()), [p.grad for p in parameters], optimised, others])
    return sum(storage.nbytes() for storage in storages(tensors).values())


def _advice(trainer: Trainer, module: LightningModule, batch: Any) -> Advice | None:
    gc.collect()
    left = available_bytes(trainer.strategy.root_device)
    if left is None:
        return None
    takes_index = len(inspect.signature(module.training_step).parameters) > 1

    def objective(batch: Any) -> Tensor:
        with trainer.precision_plugin.train_step_context():
            output: Any = module.training_step(batch, 0) if takes_index else module.training_step(batch)
        loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
        return loss

    memory = left + state_bytes(trainer, module, batch)
    (optimizer,) = trainer.optimizers
    with muted(module):
        return advice_on(module, batch, objective, memory, optimizer=optimizer, draws=0, rounds=0, own_loss=True)
