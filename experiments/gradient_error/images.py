"""Batches of 3x32x32 images: real ones from the disk, synthetic ones from a generator."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from experiments.data import CIFAR100, Digits, FashionMNIST, ImageData
from randbp.cli.errors import UsageError

IMAGE_SHAPE = (3, 32, 32)
NUM_CLASSES = 100


class Images(ABC):
    """Where batches come from."""

    name: str
    real: bool

    @abstractmethod
    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images ``[size, 3, 32, 32]`` and labels ``[size]`` below 100."""


class RandomImages(Images):
    """Every pixel from N(0, 1), every label from all classes."""

    name, real = "random normal images", False

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = torch.randn(size, *IMAGE_SHAPE, generator=generator)
        return images, torch.randint(NUM_CLASSES, (size,), generator=generator)


class RealImages(Images):
    """Training images of a data set, normalised; grey ones are repeated in all three channels.

    Raises:
        FileNotFoundError: If its files are not there.
    """

    real = True

    def __init__(self, name: str, data: ImageData) -> None:
        self.name, self.mean, self.std = name, data.mean, data.std
        self.samples = data.load()[0]

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        known = len(self.samples.labels)
        if size > known:
            raise UsageError(f"--batch-size={size}: {self.name} has only {known} training images")
        images, labels = self.samples.take(torch.randperm(known, generator=generator)[:size])
        images = images / 255 if images.dtype == torch.uint8 else images
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images - mean) / std).expand(-1, *IMAGE_SHAPE).contiguous(), labels


def real_images(cifar_root: Path | None) -> RealImages:
    """CIFAR-100 if its folder is given, else Fashion-MNIST if it is installed, else scikit-learn's digits.

    Raises:
        FileNotFoundError: If ``cifar_root`` has no CIFAR-100.
    """
    if cifar_root is not None:
        return RealImages("CIFAR-100", CIFAR100(root=str(cifar_root), hub=None))
    candidates: list[tuple[str, Callable[[], ImageData]]] = [
        ("Fashion-MNIST, padded to 32×32", FashionMNIST),
        ("scikit-learn digits, enlarged to 32×32", lambda: Digits(size=IMAGE_SHAPE[1])),
    ]
    for name, make in candidates[:-1]:
        try:
            return RealImages(name, make())
        except FileNotFoundError:
            continue
    name, make = candidates[-1]
    return RealImages(name, make())
