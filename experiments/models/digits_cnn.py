"""A small network for handwritten digits."""

from torch import Tensor, nn

from experiments.models.init import he_init


class DigitsCNN(nn.Module):
    """Four 3x3 convolutions with SiLU in between, for images of 8x8 to 32x32 pixels; trains in seconds.

    SiLU keeps its own input for the backward pass, not its output, so a convolution is the only holder of the
    tensor that it reads and whatever an estimator drops of it is really freed. (ReLU keeps its output, which is
    the next convolution's input: there, sampling the convolution's copy alone would free nothing.)

    Args:
        num_classes: number of outputs.
        in_channels: channels of the image.
        width: channels of every convolution.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(in_channels, width, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, padding=1), nn.SiLU()),
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, num_classes))
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(self.features(x))
