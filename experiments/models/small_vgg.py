"""VGG with batch normalisation in small: Conv-BN-ReLU, as in most networks for images."""

from itertools import pairwise

from torch import Tensor, nn

from experiments.models.init import he_init


class Block(nn.Sequential):
    """3x3 convolutions, each with batch normalisation and ReLU, then a max-pooling unless it is the last block."""

    def __init__(self, inputs: int, outputs: int, convolutions: int, pool: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, *[outputs] * (convolutions - 1)):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, *[nn.MaxPool2d(2)] * pool)


class SmallVGG(nn.Module):
    """Three blocks of Conv-BN-ReLU layers with ``width``, twice and four times as many channels, then the mean.

    288,170 parameters for ten classes of grey images.

    Source: the layout of Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015 (https://arxiv.org/abs/1409.1556), with batch normalisation; He initialisation.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        width: channels of the first block.
        convolutions: layers of each block.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 32,
        convolutions: tuple[int, int, int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if len(convolutions) != 3 or min(convolutions) < 1:
            raise ValueError(f"convolutions must be three numbers of at least 1, got {convolutions}")
        channels = (in_channels, width, 2 * width, 4 * width)
        sizes = zip(pairwise(channels), convolutions, (True, True, False), strict=True)
        self.features = nn.Sequential(*(Block(*pair, count, pool) for pair, count, pool in sizes))
        self.classifier = nn.Linear(4 * width, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))
