"""The project of a user: networks and data sets, some of them with faults."""

import sys

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class MyNet(LightningModule):
    """Three convolutions and a head, for images of 8×8."""

    channels = 1

    def __init__(self, width: int = 4, lr: float = 0.05):
        super().__init__()
        self.lr = lr
        self.build(width)

    def build(self, width: int) -> None:
        self.features = nn.Sequential(
            nn.Conv2d(self.channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(8 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        output = self(x)
        loss = nn.functional.cross_entropy(output, y)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": (output.argmax(1) == y).float().mean()})
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.step("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class NoConv(MyNet):
    """Linear layers alone."""

    def build(self, width: int) -> None:
        self.features = nn.Identity()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Raises(MyNet):
    """A bug in the training step."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        raise RuntimeError("my own bug")


class Exits(MyNet):
    """Ends the process from the training step."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        sys.exit(7)


class NaNLoss(MyNet):
    """A loss that is never a number."""

    def step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = super().step(stage, batch) * float("nan")
        self.log(f"{stage}_loss", loss)
        return loss


class NotLightning(nn.Module):
    """No LightningModule."""


class MyData(LightningDataModule):
    """Images of noise, brighter for higher labels."""

    channels, size = 1, 64

    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.batch_size = batch_size

    def loader(self, size: int, shuffle: bool = False) -> DataLoader:
        generator = torch.Generator().manual_seed(size)
        labels = torch.randint(10, (size,), generator=generator)
        images = torch.randn(size, self.channels, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1) / 10
        return DataLoader(TensorDataset(images, labels), self.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.size, shuffle=self.size > 0)

    def val_dataloader(self) -> DataLoader:
        return self.loader(32)

    def test_dataloader(self) -> DataLoader:
        return self.loader(48)


class Colour(MyData):
    """Images of three channels."""

    channels = 3


class Empty(MyData):
    """Nothing to train on."""

    size = 0
