"""Data modules for Lightning: images in memory, in an order that a resumed run repeats."""

from experiments.data.cifar import CIFAR10, CIFAR100
from experiments.data.digits import Digits
from experiments.data.fashion_mnist import FashionMNIST
from experiments.data.generated import GeneratedImages
from experiments.data.images import ImageData, Samples
from experiments.data.loader import Loader
from experiments.data.mnist5k import MNIST5k

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "FashionMNIST",
    "GeneratedImages",
    "ImageData",
    "Loader",
    "MNIST5k",
    "Samples",
]
