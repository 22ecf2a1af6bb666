"""Resume a run with the random numbers that the interrupted one would have drawn."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Keep PyTorch's global random state in the checkpoint.

    Layers like ``nn.Dropout`` draw from the global generators, which Lightning does not save: without this callback
    a resumed run drops other units than the uninterrupted one. Estimators of randbp need no such help. In a run with
    several processes each has a state of its own but only one is saved, so there the callback does nothing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RandomState()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of the CPU generator and of the current device's."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states until training starts."""
        self._state = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the states in force, after all that resuming itself may have drawn."""
        state, self._state = self._state, None
        if state is None or trainer.world_size > 1:
            return
        torch.set_rng_state(state["cpu"].cpu())
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
