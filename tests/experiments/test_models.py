"""Networks: parameter counts of the literature, shapes, initialisation, gradients to every parameter."""

import pytest
import torch
from torch import nn

from experiments.models import VGG19, AllCNNC, DigitsCNN, Net3c3d, ResNet18, SmallVGG


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: AllCNNC(num_classes=10), 1_369_738),
        (lambda: AllCNNC(num_classes=100), 1_387_108),
        (lambda: Net3c3d(num_classes=10), 895_210),
        (lambda: ResNet18(), 11_689_512),
        (lambda: ResNet18(num_classes=10, stem="cifar"), 11_173_962),
        (lambda: VGG19(), 143_667_240),
        (lambda: VGG19(batch_norm=True), 143_678_248),
        # The published CIFAR-10 VGG-19 with batch normalisation and one linear layer.
        (lambda: VGG19(num_classes=10, head="cifar", batch_norm=True), 20_040_522),
    ],
)
def test_parameter_counts_are_those_of_the_literature(build, expected):
    with torch.device("meta"):
        assert count(build()) == expected


@pytest.mark.parametrize(
    ("model", "image"),
    [
        (AllCNNC(num_classes=7, in_channels=1, width=0.125), (1, 32, 32)),
        (Net3c3d(num_classes=7, in_channels=1), (1, 32, 32)),
        (Net3c3d(num_classes=7, image_size=28), (3, 28, 28)),
        (ResNet18(num_classes=7, in_channels=1, stem="cifar"), (1, 32, 32)),
        (ResNet18(num_classes=7), (3, 64, 64)),
        (VGG19(num_classes=7, in_channels=1, head="cifar"), (1, 32, 32)),
        (SmallVGG(num_classes=7, width=4), (1, 28, 28)),
        (SmallVGG(num_classes=7, width=4, in_channels=3, convolutions=(1, 2, 2)), (3, 32, 32)),
        (DigitsCNN(num_classes=7, width=8), (1, 16, 16)),
        (DigitsCNN(num_classes=7, width=8, in_channels=3), (3, 8, 8)),
    ],
)
def test_forward_gives_logits_and_backward_reaches_every_parameter(model, image):
    logits = model(torch.randn(2, *image, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_small_vgg_has_the_parameters_that_it_names():
    assert "288,170" in SmallVGG.__doc__ and count(SmallVGG()) == 288_170
    assert count(SmallVGG(width=8, convolutions=(1, 2, 2))) == count(SmallVGG(width=8)) - 9 * 64 - 2 * 8
    assert count(SmallVGG(width=8, in_channels=3)) == 9 * (24 + 64 + 128 + 256 + 512 + 1024) + 2 * 112 + 33 * 10


def test_vgg19_takes_the_geometry_of_imagenet():
    with torch.device("meta"):
        assert VGG19()(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


def test_feature_maps_have_the_papers_sizes():
    with torch.device("meta"):
        x = torch.empty(1, 3, 32, 32)
        assert AllCNNC().features(x).shape == (1, 100, 6, 6)  # 8x8, less two for the unpadded convolution
        assert Net3c3d().features(x).shape == (1, 128, 3, 3)
        net = ResNet18(stem="cifar")
        assert net.layer4(net.layer3(net.layer2(net.layer1(net.conv1(x))))).shape == (1, 512, 4, 4)


def test_allcnnc_dropout_can_be_switched_off():
    rates = [m.p for m in AllCNNC(width=0.1).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.2, 0.5, 0.5]
    assert not any(m.p for m in AllCNNC(width=0.1, dropout=False).modules() if isinstance(m, nn.Dropout))


def test_he_initialisation_keeps_the_scale_of_activations():
    torch.manual_seed(0)
    model = AllCNNC(dropout=False)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        fan_in = conv.weight[0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not conv.bias.any()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ResNet18(stem="tiny"), "stem"),
        (lambda: VGG19(head="tiny"), "head"),
        (lambda: AllCNNC(width=0.0), "width"),
        (lambda: SmallVGG(width=0), "width"),
        (lambda: SmallVGG(convolutions=(1, 2)), "convolutions"),  # type: ignore[arg-type]
        (lambda: Net3c3d(image_size=8), "image_size"),
    ],
)
def test_wrong_arguments_are_named(build, name):
    with pytest.raises(ValueError, match=name), torch.device("meta"):
        build()
