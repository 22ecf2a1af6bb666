"""Small callbacks of the command line."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from .errors import RunError
from .quiet import quieten


class LogConfig(Callback):
    """Hand the resolved configuration to W&B."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a process that the run has started as quiet as the run itself."""
        self.__dict__ = state
        quieten()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand over the configuration once W&B has started."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.config)


class RefuseNoData(Callback):
    """Fail a training that has not seen a single batch."""

    def __init__(self) -> None:
        self._seen = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that there are data."""
        self._seen = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail if nothing was trained on, unless none was asked for or a finished training was resumed."""
        wanted = trainer.limit_train_batches != 0 and trainer.max_epochs != 0 and trainer.max_steps != 0
        if wanted and not self._seen and trainer.current_epoch == 0 and trainer.global_step == 0:
            raise RunError("data: the training data has no batch, expected at least one")
