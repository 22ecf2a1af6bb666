"""What all image data modules share: split, normalisation, augmentation, loaders."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from experiments.data.augment import random_flip, random_shift
from experiments.data.loader import Loader, Transform

SPLIT_SEED = 0  # the validation samples are the same in all runs, whatever their seed


class Samples(NamedTuple):
    """Images ``[N, C, H, W]`` (``uint8``, or ``float32`` in [0, 1]) and their labels ``[N]`` (``int64``)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Samples":
        """Return the samples with these numbers."""
        return Samples(self.images[index], self.labels[index])


class ImageData(LightningDataModule):
    """Images that fit into memory.

    A subclass says where they come from (:meth:`load`). Validation samples are drawn from the training set once
    and for all. Each process validates and tests on all samples, so that the metrics are exact.

    Args:
        batch_size: samples per training batch and process; evaluation uses twice as many.
        augment: whether to shift training images by up to ``shift`` pixels and, where it makes sense, mirror them.
        val_fraction: part of the training samples that is set aside for validation.
        seed: of the order of the training samples and of the augmentation; by default the one that was given to
            ``seed_everything`` (0 if it was not called).
    """

    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    shift = 4
    mirror = True

    def __init__(
        self,
        batch_size: int = 128,
        augment: bool = False,
        val_fraction: float = 0.1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        self.batch_size, self.augment, self.val_fraction, self.seed = batch_size, augment, val_fraction, seed
        self.train: Samples | None = None
        self.val: Samples | None = None
        self.test: Samples | None = None

    def load(self) -> tuple[Samples, Samples]:
        """Return the samples for training (and validation) and those for testing."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Load once, then split."""
        if self.train is not None:
            return
        known, self.test = self.load()
        order = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        size = max(1, round(self.val_fraction * len(order)))
        self.val, self.train = known.take(order[:size]), known.take(order[size:])

    def train_dataloader(self) -> Loader:
        """Shuffled, perhaps augmented batches."""
        assert self.train is not None
        trainer = self.trainer
        return Loader(
            *self.train,
            self.batch_size,
            self._transform(self.augment),
            shuffle=True,
            seed=int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
        )

    def val_dataloader(self) -> Loader:
        """The validation samples in order."""
        assert self.val is not None
        return Loader(*self.val, 2 * self.batch_size, self._transform(False))

    def test_dataloader(self) -> Loader:
        """The test samples in order."""
        assert self.test is not None
        return Loader(*self.test, 2 * self.batch_size, self._transform(False))

    def predict_dataloader(self) -> Loader:
        """The test samples in order."""
        return self.test_dataloader()

    def _transform(self, augment: bool) -> Transform:
        mean = torch.tensor(self.mean)[:, None, None]
        std = torch.tensor(self.std)[:, None, None]

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            if augment:
                images = random_shift(images, self.shift, generator)
                if self.mirror:
                    images = random_flip(images, generator)
            scaled = images / 255 if images.dtype == torch.uint8 else images
            return (scaled - mean) / std

        return transform
