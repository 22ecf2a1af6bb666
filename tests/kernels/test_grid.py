"""Levels of a known range: unbiased, and of activations the derivatives that are PyTorch's to rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp import kernels
from randbp.kernels.derivatives import FUNCTIONS, derivative

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str, list[float]]] = {
    "gelu": (F.gelu, "gelu", [1.0, 0.0, 0.0]),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh", [1.0, 0.0, 0.0]),
    "silu": (F.silu, "silu", [1.0, 0.0, 0.0]),
    "mish": (F.mish, "mish", [1.0, 0.0, 0.0]),
    "sigmoid": (torch.sigmoid, "sigmoid", [1.0, 0.0, 0.0]),
    "tanh": (torch.tanh, "tanh", [2.0, 0.0, 0.0]),
    "tanhshrink": (F.tanhshrink, "tanhshrink", [2.0, 0.0, 0.0]),
    "softplus": (lambda x: F.softplus(x, 2.0, 5.0), "softplus", [2.0, 5.0, 0.0]),
    "elu": (lambda x: F.elu(x, 0.7), "elu", [1.0, 0.7, 1.0]),
    "hardswish": (F.hardswish, "hardswish", [1.0, 0.0, 0.0]),
}


def test_every_activation_is_compared() -> None:
    assert {function for _, function, _ in ACTIVATIONS.values()} == set(FUNCTIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_pytorchs(name: str) -> None:
    activation, function, parameters = ACTIVATIONS[name]
    ends = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, -0.0, -3.0, 3.0, -500.0, 500.0], dtype=torch.float64)
    x = torch.cat([torch.linspace(-20, 20, 40_000, dtype=torch.float64), ends, torch.zeros(32 - len(ends))])
    x.requires_grad_()
    (expected,) = torch.autograd.grad(activation(x).sum(), x)
    found = derivative(x.detach().float(), function, parameters)
    assert torch.equal(found.isnan(), expected.isnan())
    assert float((found - expected).nan_to_num(0).abs().max()) < 2e-6


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_levels_are_unbiased_and_exact_where_a_number_is_one(backend: kernels.Backend) -> None:
    values = torch.tensor([0.0, 1.0, -0.13, 0.437]).repeat_interleave(2**16)
    with kernels.use(backend):
        held = kernels.to_grid(values, "", [1.0, 0.0, 0.0], 7, 0, 4, 11.0, 2.0)
        decoded = kernels.times_grid(torch.ones_like(values), held, 4, 1 / 11, 2.0).view(4, -1)
    assert bool((decoded[0] == 0).all()) and bool((decoded[1] - 1).abs().max() < 1e-6)
    for row, exact in zip(decoded[2:].double(), (-0.13, 0.437), strict=True):
        # a two-sided z-test at an error rate of 1e-6 each
        assert abs(float(row.mean()) - exact) < 4.9 * float(row.std()) / 2**8 + 2**-17 / 11
