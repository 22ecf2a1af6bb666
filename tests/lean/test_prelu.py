"""PReLU holds a bit per entry, and a few more where its slopes learn."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp.diagnostics import memory_report

from .same import assert_same, lean, values_and_grads
from .test_exact import FORMATS, tensor
from .test_rounded import is_unbiased

SHAPE = (8, 5, 32, 16)
SLOPES = {"one": torch.tensor([0.25]), "per channel": torch.linspace(-0.5, 1.5, 5)}


@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_frozen_slopes_are_exact(slopes: str, format: str, dtype: torch.dtype) -> None:
    x = tensor(format, dtype, SHAPE)
    weight = SLOPES["one"] if slopes == "one" else torch.linspace(-0.5, 1.5, x.shape[1])
    weight = weight.to(dtype)
    for level in ("exact", True):
        ours = values_and_grads(lean(F.prelu, level), x, weight)
        assert_same(ours, values_and_grads(F.prelu, x, weight))
        assert memory_report(lean(lambda x: F.prelu(x * 1, weight), level), x).held_bytes == -(-x.numel() // 8)


@pytest.mark.parametrize("slopes", SLOPES)
def test_gradients_of_learnt_slopes_are_unbiased(slopes: str) -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = SLOPES[slopes].clone().requires_grad_()
    is_unbiased(lambda w, x: F.prelu(x, w), (weight, x * 1.0), bits=2, draws=200)
    is_unbiased(lambda w, x: F.prelu(x, w), (weight, (x * 1.0).contiguous(memory_format=torch.channels_last)), 2, 200)


@pytest.mark.parametrize("slopes", SLOPES)
def test_the_input_gradient_is_exact(slopes: str) -> None:
    for format in FORMATS:
        x = tensor(format, torch.float64, SHAPE)
        weight = (SLOPES["one"] if slopes == "one" else torch.linspace(-0.5, 1.5, x.shape[1])).double().requires_grad_()
        (_, mine, _), (_, exact, _) = (values_and_grads(f, x, weight) for f in (lean(F.prelu, True), F.prelu))
        assert_same([mine], [exact])


def test_second_derivatives() -> None:
    def second(function: Any, weight: Tensor) -> Tensor:
        x = tensor("contiguous", torch.float64, SHAPE).detach().nan_to_num(1, 1, 1).requires_grad_()
        (first,) = torch.autograd.grad(function(x**3, weight).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    weight = SLOPES["per channel"].double()
    assert torch.equal(second(lean(F.prelu), weight), second(F.prelu, weight))
    with pytest.raises(RuntimeError, match="double backward"):
        second(lean(F.prelu, True), weight.clone().requires_grad_())


def test_other_calls_are_pytorchs() -> None:
    for x in (torch.randn(SHAPE).requires_grad_(), torch.randn(4, 5).requires_grad_() * 1):
        assert type(lean(F.prelu, True)(x, SLOPES["one"]).grad_fn) is type(F.prelu(x, SLOPES["one"]).grad_fn)
