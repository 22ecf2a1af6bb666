"""Frozen layers pass a gradient on to their input, and hold nothing of it: PyTorch's gradient, bit for bit."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import randbp
from randbp.diagnostics import memory_report

SETTINGS: list[dict[str, Any]] = [{"preset": "exact"}, {"weight_vjp": randbp.Rounding(4), "lean": True}]


def layer(draw: random.Random) -> tuple[nn.Module, Tensor]:
    dims, groups = draw.choice((1, 2, 3)), draw.choice((1, 2))
    kind = getattr(nn, f"Conv{draw.choice(('', 'Transpose'))}{dims}d")
    options = {"stride": draw.choice((1, 2)), "padding": draw.choice((0, 1)), "bias": draw.random() < 0.5}
    frozen = kind(2 * groups, 4 * groups, draw.choice((2, 3)), groups=groups, **options).requires_grad_(False)
    x = torch.randn(2, 2 * groups, *(draw.choice((4, 5)) for _ in range(dims)))
    return frozen, x.to(memory_format=torch.channels_last) if dims == 2 and draw.random() < 0.5 else x


@pytest.mark.parametrize("seed", range(8))
def test_a_frozen_convolution_holds_nothing_of_its_input(seed: int) -> None:
    torch.manual_seed(seed)
    frozen, x = layer(random.Random(seed))
    model, x = nn.Sequential(nn.Identity(), frozen), x.requires_grad_()
    output_grad = torch.randn_like(model(x))
    (expected,) = torch.autograd.grad(model(x), x, output_grad)
    for setting in SETTINGS:
        with randbp.randomize(model, **setting):
            y = model(x.clone())  # whose memory nobody else holds
            (grad,) = torch.autograd.grad(y, x, output_grad)
            assert torch.equal(grad, expected) and grad.stride() == expected.stride()
            assert memory_report(model, x, loss=lambda y: (y * output_grad).sum()).held_bytes == 0


def test_a_factor_that_shares_its_memory_with_the_other_one_is_held() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 0
            return (y * y.detach()).sum()

    x, model = torch.randn(5000, requires_grad=True), Gate()
    for lean in ("exact", True):
        with randbp.randomize(model, randbp.Exact(), lean=lean):
            (grad,) = torch.autograd.grad(model(x), x)
        torch.testing.assert_close(grad, x.detach(), rtol=0, atol=0 if lean == "exact" else 1.0)
