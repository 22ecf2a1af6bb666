"""Short Lightning runs of a network, for the tests of second-order optimisers."""

from collections.abc import Callable
from typing import Any

import lightning
from torch import nn
from torch.nn.functional import cross_entropy

from randbp.curvature import KFAC


class Module(lightning.LightningModule):
    """A classifier; each process trains on its part of a batch."""

    def __init__(self, network: nn.Module, optimizer: Callable[..., Any] = KFAC, **options: Any) -> None:
        super().__init__()
        self.network, self.optimizer, self.options = network, optimizer, options

    def training_step(self, batch: Any, _: int) -> Any:
        x, y = (part[self.trainer.global_rank :: self.trainer.world_size] for part in batch)
        return cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.network, **self.options)


def trainer(folder: Any, **options: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)
