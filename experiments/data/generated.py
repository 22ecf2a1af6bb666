"""Images made up on the spot."""

from typing import Any

import torch
from torch.nn import functional

from experiments.data.images import ImageData, Samples


class GeneratedImages(ImageData):
    """Each class has one smooth random pattern; an image is its class's pattern, shifted, plus white noise.

    For tests, for timings, and to see what does not depend on real data. The images depend on ``image_seed`` alone.

    Args:
        num_classes: number of classes.
        channels: channels of the images.
        size: their height and width.
        train_size: number of samples for training and validation.
        test_size: number of samples for testing.
        noise: standard deviation of the noise relative to the pattern's.
        image_seed: of patterns, shifts, noise and labels.
        kwargs: what :class:`ImageData` takes.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        size: int = 32,
        train_size: int = 2048,
        test_size: int = 512,
        noise: float = 1.0,
        image_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("num_classes", num_classes), ("channels", channels), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_classes = num_classes
        self.mean, self.std = (0.0,) * channels, (1.0,) * channels
        self.shape = (channels, size, size)
        self.train_size, self.test_size = train_size, test_size
        self.noise, self.image_seed = noise, image_seed

    def load(self) -> tuple[Samples, Samples]:
        """Draw patterns, then images."""
        generator = torch.Generator().manual_seed(self.image_seed)
        channels, size, _ = self.shape
        coarse = torch.randn(self.num_classes, channels, 4, 4, generator=generator)
        patterns = functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
        patterns = patterns / patterns.std(dim=(1, 2, 3), keepdim=True)

        def draw(n: int) -> Samples:
            labels = torch.randint(self.num_classes, (n,), generator=generator)
            noise = torch.randn(n, channels, size, size, generator=generator)
            return Samples((patterns[labels] + self.noise * noise) / (1 + self.noise**2) ** 0.5, labels)

        return draw(self.train_size), draw(self.test_size)
