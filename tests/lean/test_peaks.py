"""The peak of a step: beside what is held, an operation's input and output and their gradients, and little more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp import Spatial
from randbp.diagnostics import StepPeak
from randbp.kernels import planes, use

from .same import assert_same, lean, values_and_grads

SHAPE = (4, 32, 128, 128)  # large examples, of 2 MiB
FULL = 4 * 4 * 32 * 128 * 128


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backward_peak(function: Callable[[Tensor], Tensor]) -> float:
    """Peak of a backward pass beyond the gradient that it starts from, in tensors of full size."""
    x, grad = torch.randn(SHAPE).requires_grad_(), torch.randn(SHAPE)
    y = function(x)
    with StepPeak("cpu") as peak:
        y.backward(grad)
    return peak.bytes / FULL


@pytest.mark.parametrize(
    ("function", "level"),
    [(F.relu, "exact"), (lambda x: F.leaky_relu(x, 0.1), "exact"), (F.hardsigmoid, "exact"), (F.gelu, True)],
)
def test_activations_make_one_tensor_in_backward(function: Any, level: Any) -> None:
    assert 1 <= backward_peak(lean(function, level)) < 1.22


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(32), nn.GroupNorm(4, 32), nn.InstanceNorm2d(32)])
def test_normalisations_make_one_tensor_in_backward(norm: nn.Module) -> None:
    assert 1 <= backward_peak(lean(norm, True)) < 1.35


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(32), nn.GroupNorm(4, 32)])
def test_normalisations_make_one_tensor_in_forward(norm: nn.Module) -> None:
    x, lean_norm = torch.randn(SHAPE).requires_grad_() * 1, lean(norm, True)
    with StepPeak("cpu") as peak:
        y = lean_norm(x)
    held = FULL / 8  # four of 32 bits
    assert FULL + held <= peak.bytes < 1.5 * FULL and y.shape == SHAPE


def test_convolutions_make_one_tensor_in_forward_and_backward() -> None:
    model = nn.Conv2d(16, 16, 3, padding=1)
    x, grad = torch.randn(32, 16, 64, 64).requires_grad_(), torch.randn(32, 16, 64, 64)
    with randbp.randomize(model, Spatial(keep=1 / 16)):
        with StepPeak("cpu") as forward:
            y = model(x)
        with StepPeak("cpu", model.parameters()) as backward:
            y.backward(grad)
    assert y.nbytes <= forward.bytes < 1.3 * y.nbytes
    assert x.nbytes <= backward.bytes < 1.4 * x.nbytes


@pytest.mark.parametrize("count", [2**17, 2**17 + 5, 3 * 2**17 + 8, 9])
def test_masks_of_several_pieces_are_pytorchs(count: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for function in (F.relu, lambda x: F.leaky_relu(x, 0.1), F.hardsigmoid, lambda x: x.clamp(-1, 0.5)):
        assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


def test_a_gradient_that_others_hold_is_not_overwritten() -> None:
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=order).requires_grad_()
        grad = torch.randn(2, 3, 4, 5)
        before = grad.clone()
        lean(F.relu)(x * 1).backward(grad)
        assert torch.equal(grad, before) and torch.equal(x.grad, before * (x > 0))


def test_the_normalisations_pieces_divide_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces per example in plain PyTorch, corrected or not, in the average of many draws."""
    x = torch.randn(4, 12, 6, 6, generator=torch.Generator().manual_seed(5)).requires_grad_()
    for norm in (lambda x: F.batch_norm(x, None, None, training=True), lambda x: F.group_norm(x, 3)):
        exact = values_and_grads(norm, x)
        for piece in (40, 150, 2**17):  # one, four and all channels
            monkeypatch.setattr(planes, "PIECE", piece)
            with use("reference"):
                draws = [values_and_grads(lean(norm, True, bits=8, seed=seed), x)[1] for seed in range(20)]
            error = (torch.stack(draws).mean(0) - exact[1]).norm() / exact[1].norm()
            assert error < 4e-3
