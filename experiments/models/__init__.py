"""Networks, one file each: plain modules of convolutions, without a trace of randbp in them."""

from experiments.models.allcnnc import AllCNNC
from experiments.models.convnext import ConvNeXt
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.mobilenet_v2 import MobileNetV2
from experiments.models.net3c3d import Net3c3d
from experiments.models.resnet18 import ResNet18
from experiments.models.small_vgg import SmallVGG
from experiments.models.small_vit import SmallViT
from experiments.models.vgg19 import VGG19

__all__ = ["VGG19", "AllCNNC", "ConvNeXt", "DigitsCNN", "MobileNetV2", "Net3c3d", "ResNet18", "SmallVGG", "SmallViT"]
