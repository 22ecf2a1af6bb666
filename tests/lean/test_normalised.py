"""Batch normalisation is made again from its statistics, in one pass, where that gives PyTorch's bits."""

import pytest
import torch
from torch import Tensor, nn

from randbp.kernels import use
from randbp.lean import make_lean
from randbp.lean.normalised import Normalised, normalised
from randbp.randomize.layers import Clock

from .same import assert_same, values_and_grads

SHAPES = ((4, 5, 6, 7), (3, 16, 17, 16), (40, 9), (2, 3, 65), (9, 33, 2, 2), (2, 3, 3, 4, 5))

FUSES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether PyTorch's kernels are known to round a multiplication and addition once."""


def _made(x: Tensor) -> tuple[Tensor, Normalised]:
    weight, bias = torch.randn(2, x.shape[1], generator=torch.Generator().manual_seed(1))
    y, mean, rstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
    return y, Normalised(mean, rstd, weight, bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_it_has_pytorchs_bits_or_is_not_used(shape: tuple[int, ...], last: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(2):  # the second time it is trusted
        x = torch.randn(shape, generator=draw) * 3 + 1
        if last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        y, step = _made(x)
        torch.testing.assert_close(step(x), y)
        found = normalised(x, y, step)
        assert found is not None or not FUSES or x.stride() != y.stride()
        if found is not None:
            assert torch.equal(found(x).view(torch.int32), y.view(torch.int32)) and found(x).stride() == y.stride()
            assert torch.equal(found.with_relu()(x), y.relu())


def test_other_bits_are_found_out() -> None:
    x = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0))
    y, step = _made(x)
    for _ in range(4):
        assert normalised(x, torch.nextafter(y, torch.tensor(9.0)), step) is None


def test_without_numba_it_is_left_to_pytorch() -> None:
    y, step = _made(x := torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)))
    with use("reference"):
        assert normalised(x, y, step) is None


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_are_pytorchs(inplace: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)),
        *(nn.ReLU(inplace), nn.Conv2d(8, 4, 1)),
    )
    x = torch.randn(4, 3, 11, 10).requires_grad_()
    results = []
    for lean in (False, "exact"):
        handle = make_lean(model, lean, 4, Clock(0).state)
        for parameter in model.parameters():
            parameter.grad = None
        found = values_and_grads(model, x)
        results.append([*found, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
        handle.remove()
    assert_same(*results)
