"""Masks of one bit per entry: reference and numba alike, and what PyTorch computes without them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp import kernels
from randbp.kernels.mask_bits import mask_bytes

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 8, 255, 5 * 2048 + 13, 2**17 + 2048 + 3)
SPECIAL = (0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 1e-42, -1e-42, 0.5, -0.5, 3.0, 6.0)

TESTS = {
    ("over", 0.0, 0.0): lambda x: x > 0,
    ("not_under", 0.3, 0.0): lambda x: ~(x <= 0.3),
    ("between", -3.0, 3.0): lambda x: (x > -3) & (x < 3),
    ("within", -0.5, torch.inf): lambda x: x >= -0.5,
}


def _values(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    special = torch.tensor(SPECIAL, dtype=dtype)
    x[3 : 3 + len(special)] = special[: max(0, count - 3)]
    return x


def _same(a: Tensor, b: Tensor) -> bool:
    """Also -0 and NaN."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(7).view(integers), b.nan_to_num(7).view(integers)
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", SIZES)
def test_masks_are_pytorchs_comparisons(count: int, dtype: torch.dtype, backend: kernels.Backend) -> None:
    x = _values(count, dtype)
    with kernels.use(backend):
        for (test, low, high), compare in TESTS.items():
            bits = kernels.inside(x, test, low, high)
            assert bits.dtype == torch.uint8 and len(bits) == mask_bytes(count)
            assert torch.equal(kernels.unmask(bits, count), compare(x))
            assert torch.equal(kernels.inside(compare(x), "true", 0.0, 0.0), bits)
        strided = torch.stack([x, x + 1], 1)[:, 0]
        assert torch.equal(kernels.inside(strided, "over", 0.0, 0.0), kernels.inside(x, "over", 0.0, 0.0))


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", SIZES)
def test_relu_and_its_gradient_are_pytorchs(count: int, dtype: torch.dtype, backend: kernels.Backend) -> None:
    x, grad = _values(count, dtype), _values(count, dtype, seed=1).flip(0)
    leaf = x.clone().requires_grad_()
    expected = F.relu(leaf)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad)
    with kernels.use(backend):
        y, bits = kernels.relu(x)
        assert _same(y, expected.detach()) and _same(kernels.masked(grad, bits, 1.0, None), expected_grad)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", SIZES)
def test_two_slopes_are_pytorchs(count: int, dtype: torch.dtype, backend: kernels.Backend) -> None:
    x, grad = _values(count, dtype), _values(count, dtype, seed=1).flip(0)
    for function, test, factor, other in (
        (lambda x: F.leaky_relu(x, 0.3), ("over", 0.0, 0.0), 1.0, 0.3),
        (lambda x: x * (x > 0).to(x.dtype), ("over", 0.0, 0.0), 1.0, 0.0),
        (F.hardsigmoid, ("between", -3.0, 3.0), float(torch.tensor(1 / 6)), None),
    ):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(leaf), leaf, grad)
        with kernels.use(backend):
            assert _same(kernels.masked(grad, kernels.inside(x, *test), factor, other), expected)
            if count:
                strided = torch.stack([grad, grad + 1], 1)[:, 0]
                assert _same(kernels.masked(strided, kernels.inside(x, *test), factor, other), expected)
