"""ConvNeXt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Depthwise 7x7 convolution, layer normalisation, two dense layers per position, a learned scale; a shortcut."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand, self.act, self.project = (
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
        )
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        y = self.scale * self.project(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of ``[N, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """ConvNeXt; the default is the Base variant (88,591,464 parameters for 1000 classes).

    Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (https://arxiv.org/abs/2201.03545); its initialisation
    (normal, 0.02), without stochastic depth.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        widths: channels per stage.
        depths: blocks per stage.
        scale: initial value of the learned scales of the blocks.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        widths: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (3, 3, 27, 3),
        scale: float = 1e-6,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=1e-6)]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                layers += [ChannelNorm(widths[stage - 1], eps=1e-6), nn.Conv2d(widths[stage - 1], width, 2, stride=2)]
            layers += [Block(width, scale) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(widths[-1], eps=1e-6), nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.head(self.norm(self.features(x).mean(dim=(2, 3))))
