"""ResNet-18, for ImageNet and for CIFAR."""

from typing import Literal

from torch import Tensor, nn

from experiments.models.init import he_init


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18; parameter names are torchvision's, so its checkpoints load.

    The ImageNet stem is a 7x7 convolution with stride 2 and a max-pooling (11,689,512 parameters for 1000
    classes); the CIFAR stem is one 3x3 convolution, so that 32x32 images keep their size.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016
    (https://arxiv.org/abs/1512.03385); He initialisation by fan-out.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        stem: ``imagenet`` or ``cifar``.
        width: multiplies the paper's 64 to 512 channels.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4 = (round(channels * width) for channels in (64, 128, 256, 512))
        if c1 < 1:
            raise ValueError(f"width must leave at least one channel of 64, got {width}")
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, c1, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        elif stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, c1, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f"stem must be 'imagenet' or 'cifar', got {stem!r}")
        self.bn1 = nn.BatchNorm2d(c1)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(c1, c1, 1), BasicBlock(c1, c1, 1))
        self.layer2 = nn.Sequential(BasicBlock(c1, c2, 2), BasicBlock(c2, c2, 1))
        self.layer3 = nn.Sequential(BasicBlock(c2, c3, 2), BasicBlock(c3, c3, 1))
        self.layer4 = nn.Sequential(BasicBlock(c3, c4, 2), BasicBlock(c4, c4, 1))
        self.fc = nn.Linear(c4, num_classes)
        he_init(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))
