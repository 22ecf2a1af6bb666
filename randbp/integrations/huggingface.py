"""The callback for approximate backpropagation in Hugging Face's ``Trainer``."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..randomize import RandomizedHandle, randomize


class TensorDropoutCallback(TrainerCallback):
    """Randomise a model while ``transformers.Trainer`` trains it; evaluation and prediction are exact.

    The loss that the model itself returns is as lean as the model; one that ``Trainer`` computes, with label smoothing
    or ``compute_loss_func``, is PyTorch's. A sample depends only on the seed, the layer, the optimiser's step, the
    accumulated micro-batch and the rank: a resumed run repeats what the uninterrupted run would have drawn.

    Args:
        **options: Arguments of :func:`randbp.randomize` but the model, such as ``preset="memory"``.

    Attributes:
        handle: What :func:`randbp.randomize` returned, while a training runs; ``None`` otherwise.

    Raises:
        TypeError: At construction, if there is no such argument.
        ValueError: At construction or when a training starts, as :func:`randbp.randomize` does.

    Example:
        >>> from transformers import TrainingArguments
        >>> callback = TensorDropoutCallback(preset="memory")  # Trainer(model, callbacks=[callback], ...)
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = callback.on_train_begin(TrainingArguments(), TrainerState(), TrainerControl(), model=model)
        >>> callback.handle.layers
        ['0']
        >>> callback.on_train_end(TrainingArguments(), TrainerState(), TrainerControl())
    """

    def __init__(self, **options: Any) -> None:
        randomize(nn.Sequential(nn.Conv1d(1, 1, 1)), **_of_any_model(options)).remove()
        self._options = options
        self._micro_batch = 0
        self.handle: RandomizedHandle | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Randomise the layers, also if an earlier training failed and left them so."""
        self._remove()
        self.handle = randomize(kwargs["model"], **self._options)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Select the samples of the first micro-batch of a step."""
        self._select(args, state, 0)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Select those of the next one."""
        self._select(args, state, self._micro_batch + 1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the model."""
        self._remove()

    def _select(self, args: TrainingArguments, state: TrainerState, micro_batch: int) -> None:
        assert self.handle is not None
        self._micro_batch = micro_batch
        self.handle.set_step(state.global_step, micro_batch, args.process_index)

    def _remove(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            handle.remove()


def _of_any_model(options: dict[str, Any]) -> dict[str, Any]:
    """The options that can be checked without the model: patterns of names cannot."""
    return {name: value for name, value in options.items() if name not in ("layers", "lean", "weight_vjp", "input_vjp")}
