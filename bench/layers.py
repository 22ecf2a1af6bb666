"""The distinct convolution layers of five networks, written down as specs.

All-CNN-C sees CIFAR images (32 x 32), ResNet-18, VGG-19 and MobileNetV2 224 x 224 images, ConvNeXt-Base 256
x 256, the size for which the literature reports its first layer. ConvNeXt's pointwise layers are linear and
left out.
"""

from dataclasses import dataclass

from randbp.tn import ConvSpec

# Per network rows of (in channels, image size, out channels, kernel, stride, padding, groups).
Row = tuple[int, int, int, int, int, int, int]

ALL_CNN_C: list[Row] = [
    (3, 32, 96, 3, 1, 1, 1),
    (96, 32, 96, 3, 1, 1, 1),
    (96, 32, 96, 3, 2, 1, 1),
    (96, 16, 192, 3, 1, 1, 1),
    (192, 16, 192, 3, 1, 1, 1),
    (192, 16, 192, 3, 2, 1, 1),
    (192, 8, 192, 3, 1, 0, 1),
    (192, 6, 192, 1, 1, 0, 1),
    (192, 6, 100, 1, 1, 0, 1),
]

RESNET_18: list[Row] = [
    (3, 224, 64, 7, 2, 3, 1),
    (64, 56, 64, 3, 1, 1, 1),
    (64, 56, 128, 3, 2, 1, 1),
    (64, 56, 128, 1, 2, 0, 1),
    (128, 28, 128, 3, 1, 1, 1),
    (128, 28, 256, 3, 2, 1, 1),
    (128, 28, 256, 1, 2, 0, 1),
    (256, 14, 256, 3, 1, 1, 1),
    (256, 14, 512, 3, 2, 1, 1),
    (256, 14, 512, 1, 2, 0, 1),
    (512, 7, 512, 3, 1, 1, 1),
]

VGG_19: list[Row] = [
    (3, 224, 64, 3, 1, 1, 1),
    (64, 224, 64, 3, 1, 1, 1),
    (64, 112, 128, 3, 1, 1, 1),
    (128, 112, 128, 3, 1, 1, 1),
    (128, 56, 256, 3, 1, 1, 1),
    (256, 56, 256, 3, 1, 1, 1),
    (256, 28, 512, 3, 1, 1, 1),
    (512, 28, 512, 3, 1, 1, 1),
    (512, 14, 512, 3, 1, 1, 1),
]

MOBILENET_V2: list[Row] = [
    (3, 224, 32, 3, 2, 1, 1),
    (32, 112, 32, 3, 1, 1, 32),
    (32, 112, 16, 1, 1, 0, 1),
    (16, 112, 96, 1, 1, 0, 1),
    (96, 112, 96, 3, 2, 1, 96),
    (96, 56, 24, 1, 1, 0, 1),
    (24, 56, 144, 1, 1, 0, 1),
    (144, 56, 144, 3, 1, 1, 144),
    (144, 56, 24, 1, 1, 0, 1),
    (144, 56, 144, 3, 2, 1, 144),
    (144, 28, 32, 1, 1, 0, 1),
    (32, 28, 192, 1, 1, 0, 1),
    (192, 28, 192, 3, 1, 1, 192),
    (192, 28, 32, 1, 1, 0, 1),
    (192, 28, 192, 3, 2, 1, 192),
    (192, 14, 64, 1, 1, 0, 1),
    (64, 14, 384, 1, 1, 0, 1),
    (384, 14, 384, 3, 1, 1, 384),
    (384, 14, 64, 1, 1, 0, 1),
    (384, 14, 96, 1, 1, 0, 1),
    (96, 14, 576, 1, 1, 0, 1),
    (576, 14, 576, 3, 1, 1, 576),
    (576, 14, 96, 1, 1, 0, 1),
    (576, 14, 576, 3, 2, 1, 576),
    (576, 7, 160, 1, 1, 0, 1),
    (160, 7, 960, 1, 1, 0, 1),
    (960, 7, 960, 3, 1, 1, 960),
    (960, 7, 160, 1, 1, 0, 1),
    (960, 7, 320, 1, 1, 0, 1),
    (320, 7, 1280, 1, 1, 0, 1),
]

CONVNEXT_BASE: list[Row] = [
    (3, 256, 128, 4, 4, 0, 1),
    (128, 64, 128, 7, 1, 3, 128),
    (128, 64, 256, 2, 2, 0, 1),
    (256, 32, 256, 7, 1, 3, 256),
    (256, 32, 512, 2, 2, 0, 1),
    (512, 16, 512, 7, 1, 3, 512),
    (512, 16, 1024, 2, 2, 0, 1),
    (1024, 8, 1024, 7, 1, 3, 1024),
]

NETWORKS: dict[str, list[Row]] = {
    "all-cnn-c": ALL_CNN_C,
    "resnet-18": RESNET_18,
    "vgg-19": VGG_19,
    "mobilenet-v2": MOBILENET_V2,
    "convnext-base": CONVNEXT_BASE,
}

BATCH, SMALL_BATCH = 32, 8
LARGE_UNFOLDED = 2**28  # elements of the unfolded input (1 GiB in float32) beyond which the small batch is used


@dataclass(frozen=True)
class Layer:
    """One layer of a network at the batch size it is measured at."""

    network: str
    number: int
    spec: ConvSpec

    @property
    def name(self) -> str:
        (size, *_), spec = self.spec.input_size, self.spec
        groups = f" g{spec.groups}" if spec.groups > 1 else ""
        return (
            f"{self.network}.{self.number} {spec.in_channels}x{size}→{spec.out_channels}"
            f" k{spec.kernel_size[0]} s{spec.stride[0]}{groups} n{spec.batch_size}"
        )


def layers(pattern: str = "") -> list[Layer]:
    """All layers whose ``network.number`` starts with one of the comma-separated prefixes."""
    found = []
    prefixes = [part.strip() for part in pattern.split(",") if part.strip()]
    for network, rows in NETWORKS.items():
        for number, row in enumerate(rows):
            key = f"{network}.{number}"
            if prefixes and not any(
                key == prefix or (key.startswith(f"{prefix}") and "." not in prefix) for prefix in prefixes
            ):
                continue
            found.append(Layer(network, number, _spec(row)))
    return found


def _spec(row: Row) -> ConvSpec:
    channels, size, out, kernel, stride, padding, groups = row
    output = (size + 2 * padding - kernel) // stride + 1
    unfolded = BATCH * channels * kernel**2 * output**2
    batch = BATCH if unfolded <= LARGE_UNFOLDED else SMALL_BATCH
    return ConvSpec((batch, channels, size, size), out, kernel, stride, padding, groups=groups)
