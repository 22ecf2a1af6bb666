"""Masks of selections are held in one bit per entry; values and gradients are PyTorch's bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from randbp.diagnostics import memory_report

from .same import assert_same, lean, values_and_grads
from .test_exact import FORMATS, tensor

SHAPE = (6, 10, 14, 12)


def mask(x: Tensor, repeated: bool = False) -> Tensor:
    """Of an uneven pattern, and new at each call."""
    if repeated:
        x = x[:, :1]
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) > 0.4
    made = torch.empty_like(x, dtype=torch.bool).copy_(chosen)  # in the memory format of x
    return made.expand(-1, SHAPE[1], -1, -1) if repeated else made


def with_items_set(x: Tensor) -> Tensor:
    x[mask(x)] = -2.0
    return x


SELECTIONS: dict[str, Callable[[Tensor], Any]] = {
    "where": lambda x: torch.where(mask(x), x, x.flip(0)),
    "where with a number": lambda x: torch.where(mask(x), 3.0, x),
    "where of a comparison": lambda x: torch.where(x > 0, x, 2 * x),
    "where by keywords": lambda x: torch.where(condition=mask(x), input=x, other=-x),
    "where, a method": lambda x: x.where(mask(x), 2 * x),
    "where with a row": lambda x: torch.where(mask(x), x, x[:1, :1, :1]),
    "masked_fill": lambda x: torch.masked_fill(x, mask(x), 0.5),
    "masked_fill, a method": lambda x: x.masked_fill(mask(x), -torch.inf),
    "masked_fill with a tensor": lambda x: x.masked_fill(mask(x), x.flatten()[0]),
    "masked_fill_": lambda x: x.masked_fill_(mask(x), 0.5),
    "masked_scatter": lambda x: x.masked_scatter(mask(x), 2 * x),
    "items set": with_items_set,
    "times a mask": lambda x: x * mask(x),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("level", ["exact", True])
def test_values_and_gradients(name: str, format: str, level: Any) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = tensor(format, dtype, (12, 20, 14, 12)).detach()[:6, :10].requires_grad_()
        ours, theirs = values_and_grads(lean(SELECTIONS[name], level), x), values_and_grads(SELECTIONS[name], x)
        assert_same(ours, theirs)
        assert [y.stride() for y in ours] == [y.stride() for y in theirs]


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("level", ["exact", True])
def test_one_bit_is_held(name: str, level: Any) -> None:
    x = torch.randn(8, 10, 14, 16).requires_grad_()

    def held(level: Any) -> int:
        return memory_report(lean(lambda x: SELECTIONS[name](x * 1), level), x).held_bytes

    assert held(False) == x.numel() and held(level) == x.numel() // 8


def test_repeated_masks_are_held_once_and_small_ones_whole() -> None:
    x = torch.randn(SHAPE).repeat(8, 1, 1, 1).requires_grad_()

    def repeated(x: Tensor) -> Tensor:
        return x.masked_fill(mask(x, repeated=True), 0)

    def shared(x: Tensor) -> Tensor:
        chosen = mask(x)
        return torch.where(chosen, x, 0) + x.masked_fill(chosen, 1) + torch.where(chosen, -x, 2 * x)

    def small(x: Tensor) -> Tensor:
        return x[:, :1, :1].masked_fill(mask(x[:, :1, :1]), 0)

    for function, held in ((repeated, x.numel() / 80), (shared, x.numel() / 8), (small, x.numel() / 140)):
        assert memory_report(lean(lambda x, function=function: function(x * 1)), x).held_bytes == held
        assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


def test_a_mask_that_changes_afterwards() -> None:
    x, chosen = torch.randn(64, 128).requires_grad_(), torch.rand(64, 128) > 0.5
    before = chosen.clone()

    def twice(x: Tensor) -> Tensor:
        y = x.masked_fill(chosen, 0)
        chosen.logical_not_()
        return y + torch.where(chosen, x, 0)  # the same memory, another mask

    y = lean(twice)(x * 1)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, 2 * (~before).float())


def test_other_calls_are_pytorchs() -> None:
    x = torch.randn(SHAPE)
    indices = lean(lambda x: torch.where(x > 0))(x.requires_grad_())
    assert isinstance(indices, tuple) and all(map(torch.equal, indices, torch.where(x > 0)))
    with torch.no_grad():
        out = torch.empty(SHAPE)
        lean(lambda x: torch.where(x > 0, x, 0 * x, out=out))(x)
    assert torch.equal(out, x.relu())

    def set_by_number(x: Tensor) -> Tensor:
        x[1:3] = 5.0
        return x

    assert_same(values_and_grads(lean(set_by_number), x), values_and_grads(set_by_number, x))
