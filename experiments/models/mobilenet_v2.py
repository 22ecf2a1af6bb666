"""MobileNetV2."""

from torch import Tensor, nn

from experiments.models.init import he_init

# Per stage: expansion, output channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([conv_bn_relu(inputs, hidden, 1)] if expansion > 1 else []),
            conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1; parameter names are torchvision's (3,504,872 parameters for 1000 classes).

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018
    (https://arxiv.org/abs/1801.04381); He initialisation by fan-out.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        small_images: whether the first two reductions are left out, for images of 32x32 pixels.
        dropout: dropout rate before the last layer.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, small_images: bool = False, dropout: float = 0.2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu(in_channels, 32, 3, stride=1 if small_images else 2)]
        channels = 32
        for number, (expansion, outputs, blocks, stride) in enumerate(STAGES):
            for block in range(blocks):
                first = stride if block == 0 and not (small_images and number == 1) else 1
                layers.append(InvertedResidual(channels, outputs, first, expansion))
                channels = outputs
        layers.append(conv_bn_relu(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))
        he_init(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))
