"""Handwritten digits that come with scikit-learn."""

from typing import Any

import torch
from torch.nn import functional

from experiments.data.images import SPLIT_SEED, ImageData, Samples

TEST_SIZE = 360


class Digits(ImageData):
    """1797 grey images of handwritten digits, 8x8 pixels, enlarged to ``size`` x ``size``; 360 are for testing.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository 1998;
    bundled with scikit-learn, so nothing is downloaded.

    Args:
        size: height and width after bilinear interpolation, at least 8; augmentation shifts by up to an eighth of it.
        kwargs: what :class:`ImageData` takes.
    """

    num_classes = 10
    mean, std = (0.305,), (0.32,)
    mirror = False

    def __init__(self, size: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if size < 8:
            raise ValueError(f"size must be at least 8, got {size}")
        self.size = size
        self.shift = size // 8

    def load(self) -> tuple[Samples, Samples]:
        """Read the images, enlarge them and set the test samples aside."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16  # the bundled images count from 0 to 16
        if self.size != 8:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        samples = Samples(images, torch.from_numpy(digits.target).long())
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return samples.take(order[TEST_SIZE:]), samples.take(order[:TEST_SIZE])
