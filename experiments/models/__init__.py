"""Networks, one file each: plain modules of convolutions, without a trace of randbp in them."""

from experiments.models.allcnnc import AllCNNC
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.net3c3d import Net3c3d
from experiments.models.resnet18 import ResNet18
from experiments.models.vgg19 import VGG19

__all__ = ["VGG19", "AllCNNC", "DigitsCNN", "Net3c3d", "ResNet18"]
