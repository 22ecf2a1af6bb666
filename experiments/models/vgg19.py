"""VGG-19, for ImageNet and for CIFAR."""

from typing import Literal

from torch import Tensor, nn

from experiments.models.init import he_init

# Channels of configuration E; each inner tuple ends with a 2x2 max-pooling.
STAGES = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)


class VGG19(nn.Module):
    """VGG-19 (configuration E); parameter names are torchvision's, so its checkpoints load.

    The ImageNet head pools to 7x7 and has two dense layers of 4096 units (143,667,240 parameters for 1000
    classes without batch normalisation); the CIFAR head is one linear layer on the mean over positions.

    Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015 (https://arxiv.org/abs/1409.1556); He initialisation by fan-out.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        head: ``imagenet`` or ``cifar``.
        batch_norm: whether each convolution is followed by batch normalisation.
        dropout: dropout rate between the dense layers of the ImageNet head.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        head: Literal["imagenet", "cifar"] = "imagenet",
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in STAGES:
            for width in stage:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        if head == "imagenet":
            self.avgpool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(dropout)),
                *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout)),
                nn.Linear(4096, num_classes),
            )
        elif head == "cifar":
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Linear(512, num_classes))
        else:
            raise ValueError(f"head must be 'imagenet' or 'cifar', got {head!r}")
        he_init(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
