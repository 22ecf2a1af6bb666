"""A convolution behind an exact batch normalisation holds nothing of its own, and loses nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp.diagnostics import memory_report
from randbp.lean import recompute


class Block(nn.Module):
    def __init__(self, between: Any = F.relu, affine: bool = True) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.between = nn.BatchNorm2d(16, affine=affine), between

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.between(self.norm(self.one(x))))


BETWEEN = {
    "relu": F.relu,
    "relu in place": lambda y: F.relu(y, inplace=True),
    "relu_": lambda y: y.relu_(),
    "relu6": F.relu6,
    "two": lambda y: F.leaky_relu(F.hardtanh(y, inplace=True), 0.3),
    "nothing": lambda y: y,
}


def grads(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("affine", [True, False])
def test_same_bits_from_half_the_bytes(between: str, format: torch.memory_format, affine: bool) -> None:
    model = Block(BETWEEN[between], affine).to(memory_format=format)
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=format)
    exact, before = grads(model, x), memory_report(model, x)
    with randbp.randomize(model, randbp.Exact(), lean="exact"):
        ours, after = grads(model, x), memory_report(model, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, exact, strict=True)) and len(ours) == len(exact)
    one = 4 * 16 * 16 * 16 * 4
    assert before.held_bytes >= 2 * one
    kinks = {"two": 2, "nothing": 0}.get(between, 1)
    assert after.held_bytes == one + kinks * one // 32 + 2 * 16 * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.relu_().mul(2).relu_(),
        lambda y: F.relu(y)[:, :, 1:],
        lambda y: F.relu(y).transpose(2, 3),
        lambda y: F.relu(y) + 1,
        lambda y: F.relu(y.add_(1)),
        lambda y: F.dropout(F.relu(y), 0.5),
    ],
)
def test_what_a_recipe_does_not_make_is_held(change: Any) -> None:
    def changed(y: Tensor) -> Tensor:
        torch.manual_seed(0)
        return change(y)

    model, x = Block(changed), torch.randn(4, 3, 16, 16)
    exact = grads(model, x)
    with randbp.randomize(model, randbp.Exact(), lean="exact"):
        assert all(torch.equal(a, b) for a, b in zip(grads(model, x), exact, strict=True))


def test_a_parameter_changed_before_backward_is_noticed() -> None:
    model, x = Block(), torch.randn(4, 3, 16, 16)
    with randbp.randomize(model, randbp.Exact(), lean="exact"):
        y = model(x).sum()
        with torch.no_grad():
            model.norm.weight.mul_(2)
        with pytest.raises(RuntimeError, match=r"modified in place|modified by an inplace"):
            y.backward()


def test_recipes_die_with_what_they_make() -> None:
    model, x = Block(), torch.randn(4, 3, 16, 16)
    with randbp.randomize(model, randbp.Exact(), lean="exact"):
        y = model(x)
        y.sum().backward()
        del y
        assert not recompute._RECIPES
