"""Pooling with packed positions gives PyTorch's maxima and gradients, bit for bit."""

import random

import pytest
import torch
from torch.nn import functional as F

from randbp import kernels
from randbp.kernels import max_pool, max_pool_grad


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_maxima_and_gradients_are_pytorchs(backend: kernels.Backend, dtype: torch.dtype) -> None:
    draw, drawn = random.Random(1), 0
    torch.manual_seed(1)
    while drawn < 25:
        dims, ceil = draw.choice((2, 3)), draw.random() < 0.3
        size = [draw.randint(1, 11) for _ in range(dims)]
        kernel, stride = ([draw.randint(1, 3) for _ in range(dims)] for _ in range(2))
        padding, dilation = [draw.randint(0, k // 2) for k in kernel], [draw.randint(1, 2) for _ in range(dims)]
        x = torch.randint(-3, 4, (draw.randint(1, 4), *size)).to(dtype)  # with equal entries
        if draw.random() < 0.3:
            x[torch.rand(x.shape) < 0.1] = torch.nan
        if draw.random() < 0.3:
            x[torch.rand(x.shape) < 0.5] = -torch.inf
        function = F.max_pool2d if dims == 2 else F.max_pool3d
        leaf = x.unsqueeze(0).requires_grad_()
        try:
            expected = function(leaf, kernel, stride, padding, dilation, ceil)
        except RuntimeError:
            continue  # no output is left
        drawn += 1
        grad = torch.randn(expected.shape).to(dtype)
        expected.backward(grad)
        assert leaf.grad is not None
        with kernels.use(backend):
            y, positions = max_pool(x, kernel, stride, padding, dilation, list(expected.shape[2:]))
            found = max_pool_grad(grad[0], positions, kernel, stride, padding, dilation, size)
        assert torch.equal(y.nan_to_num(77), expected[0].nan_to_num(77))
        assert torch.equal(found, leaf.grad[0])
        with kernels.use("reference"):
            assert torch.equal(positions, max_pool(x, kernel, stride, padding, dilation, list(y.shape[1:]))[1])
