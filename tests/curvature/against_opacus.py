"""The grad sampler of docs/from_opacus.md against Opacus' own, and registered in its place; run by ``make peers``."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it finds its own deprecated names
    from opacus.grad_sample import GradSampleModule, register_grad_sampler
    from opacus.grad_sample.conv import compute_conv_grad_sample

PAGE = (Path(__file__).parents[2] / "docs" / "from_opacus.md").read_text(encoding="utf-8")
OPTIONS = [
    {"padding": 1, "groups": 2},
    {"padding": 2, "stride": 2, "dilation": 2},
    {"padding": "same", "dilation": 2, "bias": False},
    {"padding": "valid", "groups": 2, "stride": 3},
]


@pytest.fixture(scope="module")
def page():
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, namespace)
    return namespace


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(page, options, dims):
    torch.manual_seed(0)
    layer = getattr(nn, f"Conv{dims}d")(4, 6, 3, dtype=torch.float64, **options)
    x = torch.randn(3, 4, *(7, 6, 5)[:dims], dtype=torch.float64)
    backprops = torch.randn_like(layer(x))
    made, expected = (
        page["per_example_conv_grads"](layer, [x], backprops),
        compute_conv_grad_sample(layer, [x], backprops),
    )
    assert made.keys() == expected.keys() == set(layer.parameters())
    for parameter, grads in made.items():
        torch.testing.assert_close(grads, expected[parameter])


def test_registered(page):
    before = dict(GradSampleModule.GRAD_SAMPLERS)
    try:
        register_grad_sampler(list(page["CONVOLUTIONS"]))(page["per_example_conv_grads"])
        torch.manual_seed(0)
        layers = (
            nn.ConvTranspose2d(2, 4, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
        )
        model = GradSampleModule(nn.Sequential(*layers).double(), loss_reduction="sum")
        model(torch.randn(5, 2, 4, 4, dtype=torch.float64)).square().sum().backward()
    finally:
        GradSampleModule.GRAD_SAMPLERS.clear()
        GradSampleModule.GRAD_SAMPLERS.update(before)
    for parameter in model.parameters():
        assert parameter.grad_sample.shape == (5, *parameter.shape)
        torch.testing.assert_close(parameter.grad_sample.sum(0), parameter.grad)
