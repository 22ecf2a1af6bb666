"""randbp.functional.conv: exact where it promises to be, and frugal where it estimates."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp import (
    Batch,
    Estimator,
    Exact,
    Precision,
    Spatial,
)
from randbp.functional import conv
from randbp.tn.execute import layer_vjps as native
from tests.catalogue import FIXED_SIZE

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_unbatched_input_and_keyword_styles(dims: int, padding: int | str) -> None:
    x = torch.randn(4, *[7] * dims, requires_grad=True)
    weight = torch.randn(6, 2, *[3] * dims, requires_grad=True)
    native = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](x, weight, None, [1] * dims, padding, 1, 2)
    output = conv(x, weight, None, [1] * dims, padding, 1, 2, weight_vjp=Spatial(0.5), input_vjp=Spatial(0.5))
    assert torch.equal(output, native)
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert weight.grad is not None and weight.grad.shape == weight.shape


@pytest.mark.parametrize("estimator", FIXED_SIZE, ids=str)
def test_memory_format_does_not_change_the_estimate(estimator: Estimator) -> None:
    x, weight = torch.randn(4, 8, 9, 9), torch.randn(6, 8, 3, 3, requires_grad=True)
    grads = []
    for form in (torch.contiguous_format, torch.channels_last):
        generator = torch.Generator().manual_seed(0)
        y = conv(x.contiguous(memory_format=form), weight, None, 2, 1, weight_vjp=estimator, generator=generator)
        grads.append(torch.autograd.grad(y.square().sum(), weight)[0])
    if isinstance(estimator, Precision):  # entries are rounded in the order of memory: two samples of one estimate
        assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()
    else:
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [((1, 2), (0, 1)), [[0, 3], [2, 0]], ((1, -1), (0, 1))], ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_uneven_padding(padding: Any, batched: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 8)[slice(None) if batched else 0].requires_grad_()
    weight, bias = torch.randn(6, 3, 3, 2, requires_grad=True), torch.randn(6, requires_grad=True)
    expected = F.conv2d(F.pad(x, [*padding[1], *padding[0]]), weight, bias, stride=2)
    output_grad = torch.randn_like(expected)
    exact = torch.autograd.grad(expected, (x, weight, bias), output_grad)

    def gradients(keep: float) -> tuple[Tensor, ...]:
        y = conv(x, weight, bias, 2, padding, weight_vjp=Spatial(keep), input_vjp=Spatial(keep))
        assert torch.equal(y, expected)
        return torch.autograd.grad(y, (x, weight, bias), output_grad)

    assert all(map(torch.equal, gradients(1), exact))
    draws = [torch.stack(found) for found in zip(*(gradients(0.5)[:2] for _ in range(200)), strict=True)]
    for stack, gradient in zip(draws, exact, strict=False):
        error = (stack.mean(0) - gradient).abs()
        assert ((error < 5.5 * stack.std(0) / 200**0.5 + 1e-5) | (error < 1e-4)).all()


def test_retain_graph_repeats_the_estimate() -> None:
    x, weight = torch.randn(4, 3, 9, 9), torch.randn(8, 3, 3, 3, requires_grad=True)
    loss = conv(x, weight, weight_vjp=Spatial(0.25)).square().sum()
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"input_vjp": Batch(0.5)},
            r"input_vjp=Batch\(keep=0.5, bernoulli=False, center=False\): Batch serves only weight_vjp",
        ),
        ({"groups": 2}, r"input channels=3: expected a positive multiple of groups=2"),
        ({"groups": 3}, r"weight: shape \(6, 3, 3, 3\), expected \(6, 1, 3, 3\) for 3 input channels in groups=3"),
        ({"stride": 2, "padding": "same"}, r"padding='same': needs stride 1"),
        ({"stride": (1, 1.0)}, r"stride=\(1, 1.0\): expected"),
        ({"padding": ((1, 2), (0.5, 1))}, r"padding=\(\(1, 2\), \(0.5, 1\)\): expected 2 pairs"),
        ({"bias": torch.zeros(3)}, r"bias: shape \(3,\), expected \(6,\)"),
        ({"dilation": 9}, r"kernel_size=\(3, 3\) with dilation=\(9, 9\): larger than the padded input"),
    ],
)
def test_bad_arguments_end_in_one_line(options: dict[str, Any], message: str) -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(6, 3, 3, 3, requires_grad=True)
    with pytest.raises(ValueError, match=message) as error:
        conv(**{"x": x, "weight": weight, **options})
    assert "\n" not in str(error.value)


def test_wrong_ranks_are_named() -> None:
    with pytest.raises(ValueError, match=r"x: shape \(8, 8\), expected 4 dimensions, or 3 without a batch"):
        conv(torch.randn(8, 8), torch.randn(6, 3, 3, 3))
    with pytest.raises(ValueError, match=r"weight: shape \(6, 3\), expected"):
        conv(torch.randn(2, 3, 8), torch.randn(6, 3))
    with pytest.raises(ValueError, match="complex"):
        conv(torch.randn(2, 3, 8, dtype=torch.cfloat), torch.randn(6, 3, 3, dtype=torch.cfloat, requires_grad=True))


def test_gradients_reach_what_lies_below() -> None:
    """Chained estimated convolutions give an unbiased gradient of the first weight."""
    torch.manual_seed(0)
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    first = (torch.rand(3, 2, 3, 3, dtype=torch.float64) - 0.3).requires_grad_()
    second = (torch.rand(2, 3, 3, 3, dtype=torch.float64) - 0.3).requires_grad_()

    def loss(estimated: bool) -> Tensor:
        options: Any = {"weight_vjp": Spatial(0.3), "input_vjp": Spatial(0.5)} if estimated else {"weight_vjp": Exact()}
        hidden = nn.functional.gelu(conv(x, first, None, 1, 1, **options))
        return conv(hidden, second, None, 2, 1, **options).square().sum()

    exact = torch.autograd.grad(loss(False), first)[0]
    draws = torch.stack([torch.autograd.grad(loss(True), first)[0] for _ in range(500)])
    z = (draws.mean(0) - exact).abs() / (draws.std(0) / 500**0.5)
    assert z.max() < 5.5  # Bonferroni over 54 entries: error probability 2e-6


@pytest.mark.parametrize(
    ("batch", "kernel", "stride", "padding", "groups"),
    [(16, 3, 1, 1, 1), (13, 3, 1, 1, 1), (19, (1, 4), 1, (0, 1), 4), (16, 1, 1, 0, 1), (67, 5, 2, 0, 32)],
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_large_forward_pass_in_parts_is_pytorchs_bit_for_bit(
    batch: int, kernel: Any, stride: int, padding: Any, groups: int, format: torch.memory_format
) -> None:
    layer = nn.Conv2d(32, 32, kernel, stride, padding, groups=groups)
    x = torch.randn(batch, 32, 72, 72, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=format)
    whole = layer(x.requires_grad_())
    assert whole.numel() > native.LARGE
    with randbp.randomize(layer, Spatial(keep=0.1)):
        found = layer(x)
    assert torch.equal(found, whole) and found.stride() == whole.stride()
