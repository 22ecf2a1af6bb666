"""A short training on handwritten digits, with all that a measurement must leave alone."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class Digits(pl.LightningModule):
    """Convolutions with BatchNorm; dropout, noise of NumPy and a metric in the training step if it is ``busy``."""

    def __init__(self, busy: bool = False, width: int = 8) -> None:
        super().__init__()
        self.busy = busy
        self.net = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2 if busy else 0.0), nn.Linear(2 * width, 10)),
        )
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.seen: list[float] = []
        self.accuracies: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if self.busy:
            x = x + 0.1 * float(np.random.rand())
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        if self.busy:
            self.accuracy.update(logits.detach(), y)
            self.seen.append(loss.item())
            self.log("loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        if self.busy:
            self.accuracies.append(float(self.accuracy.compute()))
            self.accuracy.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Losses(Callback):
    """Record the loss of each training batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())


def digits(examples: int = 1797, batch_size: int = 64) -> DataLoader:
    """Handwritten digits with noise, in a fixed order; a fifth of the labels is wrong."""
    found, generator = load_digits(), torch.Generator().manual_seed(1)
    x, y = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(found.target)
    x += 0.6 * torch.randn(x.shape, generator=generator)
    y = torch.where(torch.rand(len(y), generator=generator) < 0.2, torch.randint(10, y.shape, generator=generator), y)
    return DataLoader(TensorDataset(x[:examples], y[:examples]), batch_size, drop_last=True)


def train(
    folder: Path,
    *callbacks: Callback,
    module: Digits | None = None,
    busy: bool = False,
    data: DataLoader | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> tuple[Digits, list[float]]:
    """Train, and return the module and its losses."""
    torch.manual_seed(0)
    np.random.seed(0)
    module, losses = module or Digits(busy), Losses()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    settings = {**quiet, "enable_checkpointing": False, "max_epochs": 2, **options}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[*callbacks, losses], **settings)
    trainer.fit(module, data or digits(512), ckpt_path=ckpt_path, weights_only=True)
    return module, losses.losses
