"""Layers with a frozen weight hold nothing of their input: the input's gradient is PyTorch's, bit for bit."""

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
    options = {"stride": draw.choice((1, 2)), "padding": draw.choice((0, 1)), "bias": draw.random() < 0.7}
    frozen = kind(2 * groups, 4 * groups, draw.choice((2, 3)), groups=groups, **options).requires_grad_(False)
    x = torch.randn(2, 2 * groups, *(draw.choice((4, 5)) for _ in range(dims)))
    return frozen, x.to(memory_format=torch.channels_last) if dims == 2 and draw.random() < 0.5 else x


@pytest.mark.parametrize("seed", range(8))
def test_a_frozen_convolution_holds_nothing_of_its_input(seed: int) -> None:
    torch.manual_seed(seed)
    frozen, x = layer(random.Random(seed))
    model, x = nn.Sequential(nn.Identity(), frozen), x.requires_grad_()
    wanted = [x]
    if frozen.bias is not None and seed % 2:
        wanted.append(frozen.bias.requires_grad_())  # type: ignore[arg-type, operator]
    output_grad = torch.randn_like(model(x))
    expected = torch.autograd.grad(model(x), wanted, output_grad)
    for setting in SETTINGS:
        with randbp.randomize(model, **setting):
            y = model(x.clone())  # whose memory nobody else holds
            grad, *bias_grad = torch.autograd.grad(y, wanted, output_grad)
            assert torch.equal(grad, expected[0]) and grad.stride() == expected[0].stride()
            assert bias_grad == [] or torch.allclose(
                bias_grad[0], expected[1], atol=0 if "preset" in setting else 1e-5, rtol=0
            )
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
