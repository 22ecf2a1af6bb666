"""3c3d: three convolutions, three dense layers."""

import math

from torch import Tensor, nn

from experiments.models.init import he_init


class Net3c3d(nn.Module):
    """The 3c3d network of DeepOBS: 895,210 parameters for 32x32 colour images and ten classes.

    Each max-pooling (3x3, stride 2) rounds its output size up, which is TensorFlow's "same" padding.

    Source: Schneider, Balles and Hennig, "DeepOBS: a deep learning optimizer benchmark suite", ICLR 2019
    (https://arxiv.org/abs/1903.05499); He initialisation.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        image_size: height and width of the image, which fix the size of the first dense layer.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        size = image_size
        for shrink in (4, 2, 0):  # what the convolution takes off, before the pooling halves
            size = math.ceil((size - shrink - 3) / 2) + 1
        if size < 1:
            raise ValueError(f"image_size is too small for 3c3d, got {image_size}")

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        self.features = nn.Sequential(
            *(nn.Conv2d(in_channels, 64, 5), nn.ReLU(), pool()),
            *(nn.Conv2d(64, 96, 3), nn.ReLU(), pool()),
            *(nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), pool()),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(128 * size**2, 512), nn.ReLU()),
            *(nn.Linear(512, 256), nn.ReLU()),
            nn.Linear(256, num_classes),
        )
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(self.features(x))
