"""What a training step that ran out of memory would have taken, and what fits instead."""

import gc
import inspect
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from .._torch.storages import storages, tensors_in
from ..diagnostics.peak_memory import available_bytes
from ..text.text_table import text_table
from ..text.units import format_bytes
from ..tune import Advice
from ..tune.model_advice import advice_on
from .step_gradients import muted
from .tensor_dropout import TensorDropout


def release(exception: BaseException, module: LightningModule) -> None:
    """Give up the tensors of a step that failed: those that the frames of its exception keep alive, and gradients."""
    for each in _chain(exception):
        traceback.clear_frames(each.__traceback__)
    for parameter in module.parameters():
        parameter.grad = None
    gc.collect()


def add_memory_advice(exception: BaseException, trainer: Trainer, module: LightningModule, batch: Any) -> None:
    """Add a note to an exception: bytes of the step, and the largest batch that fits, without and with each preset.

    They are extrapolated from steps of two and four examples. What the failed step held must have been released.
    """
    if trainer.world_size > 1 or not module.automatic_optimization or len(trainer.optimizers) != 1:
        return  # other processes are not there to take part in a step; or a step has no one loss
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TensorDropout):
            callback.on_exception(trainer, module, exception)  # the model as it is
    try:
        advice = _advice(trainer, module, batch)
    except Exception as error:  # it must not hide what has happened
        exception.add_note(f"randbp: what would fit could not be measured: {type(error).__name__}: {error}")
        return
    if advice is not None:
        exception.add_note(_told(advice))


def state_bytes(trainer: Trainer, module: LightningModule, *others: Any) -> int:
    """Bytes of parameters, buffers, gradients and optimiser state, and of other tensors, each storage once."""
    parameters = list(module.parameters())
    optimised = [dict(optimizer.state) for optimizer in trainer.optimizers]
    tensors = tensors_in([parameters, list(module.buffers()), [p.grad for p in parameters], optimised, others])
    return sum(storage.nbytes() for storage in storages(tensors).values())


def _advice(trainer: Trainer, module: LightningModule, batch: Any) -> Advice | None:
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
        return advice_on(
            module, batch, objective, memory, optimizer=optimizer, draws=0, rounds=0, own_loss=True, longest=0.0
        )


def _told(advice: Advice) -> str:
    rows = [row for row in advice.rows if row.measured_at]
    cells = [
        (row.setting, format_bytes(row.given_bytes), f"{row.largest:,}" if row.largest else "none") for row in rows
    ]
    head = (
        f"randbp: {format_bytes(advice.memory)} are there for this training. What its steps take, as steps of 2 and 4"
    )
    columns = "preset", f"a batch of {advice.given}", "largest batch"
    return f"\n{head}\nexamples foretell (randbp.advise tries larger ones):\n\n{text_table(columns, cells)}"


def _chain(exception: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    while exception is not None:
        yield exception
        exception = exception.__cause__ or exception.__context__
