"""All-CNN-C: nothing but convolutions."""

from torch import Tensor, nn

from experiments.models.init import he_init


class AllCNNC(nn.Module):
    """All-CNN-C for 32x32 images: nine convolutions, the third and the sixth with stride 2, then the mean.

    As in DeepOBS the seventh convolution is not padded. 1,387,108 parameters for 100 classes at full width.

    Source: Springenberg et al., "Striving for simplicity: the all convolutional net", ICLR 2015 workshop
    (https://arxiv.org/abs/1412.6806); He initialisation.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        width: multiplies the paper's 96 and 192 channels.
        dropout: whether to drop 20 % of the input and half of each stride-2 layer's output, as in the paper.
    """

    def __init__(self, num_classes: int = 100, in_channels: int = 3, width: float = 1.0, dropout: bool = True) -> None:
        super().__init__()
        narrow, wide = round(96 * width), round(192 * width)
        if narrow < 1:
            raise ValueError(f"width must leave at least one channel of 96, got {width}")

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]

        self.features = nn.Sequential(
            nn.Dropout(0.2 if dropout else 0.0),
            *conv(in_channels, narrow, 3, padding=1),
            *conv(narrow, narrow, 3, padding=1),
            *conv(narrow, narrow, 3, stride=2, padding=1),
            nn.Dropout(0.5 if dropout else 0.0),
            *conv(narrow, wide, 3, padding=1),
            *conv(wide, wide, 3, padding=1),
            *conv(wide, wide, 3, stride=2, padding=1),
            nn.Dropout(0.5 if dropout else 0.0),
            *conv(wide, wide, 3),
            *conv(wide, wide, 1),
            nn.Conv2d(wide, num_classes, 1),
        )
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.features(x).mean(dim=(2, 3))
