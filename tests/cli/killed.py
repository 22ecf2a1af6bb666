"""A training with all sources of randomness that a user's project may have; resuming must repeat each of them."""

import random

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Labelled images, to which each visit adds noise of numpy's and Python's generators."""

    def __init__(self, count: int, noisy: bool) -> None:
        generator = torch.Generator().manual_seed(count)
        self.labels = torch.randint(3, (count,), generator=generator)
        self.images = torch.randn(count, 2, 6, 6, generator=generator) + self.labels.view(-1, 1, 1, 1)
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        if self.noisy:
            image = image + random.random() + torch.from_numpy(np.random.randn(2, 1, 1)).float()
        return image, self.labels[index]


class Data(LightningDataModule):
    """Shuffled by PyTorch's global generator, or by one of the loader's own."""

    def __init__(self, own_generator: bool = False, workers: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5) if own_generator else None
        self.workers = workers

    def train_dataloader(self) -> DataLoader:
        images = Images(24, noisy=True)
        return DataLoader(images, 6, shuffle=True, generator=self.generator, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Images(12, noisy=True), 6)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Images(12, noisy=True), 6)


class Net(LightningModule):
    """Dropout, momentum, a schedule that waits for the validation loss, metrics of steps and of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4), nn.Flatten(), nn.Linear(64, 3))
        )

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self.layers(batch[0]), batch[1]))

    def on_train_epoch_end(self):
        self.log("rate", self.optimizers().param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        # So impatient that it acts at the end of most epochs.
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
