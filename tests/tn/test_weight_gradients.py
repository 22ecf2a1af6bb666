"""Weight gradients through matrix products: per image, per line of outputs, or of blocks."""

from unittest import mock

import pytest
import torch
from hypothesis import given

from randbp import tn
from randbp.tn.execute.lines import LineProducts
from randbp.tn.planning.plan import make_plan

from .strategies import random_operands, specs

CPU = torch.device("cpu")


def kernels_of(spec: tn.ConvSpec, dtype: torch.dtype = torch.float32, operation=tn.weight_vjp) -> list[str]:
    return [step.kernel for step in make_plan(operation(spec), dtype, CPU).steps]


def check(net: tn.TensorNetwork, expected: str | None = None) -> None:
    """The plan's result is the dense einsum's."""
    plan = make_plan(net, torch.float64, CPU)
    operands = random_operands(net)
    result = plan.run([operands[slot] for slot in plan.slots])
    torch.testing.assert_close(result, torch.einsum(*net.einsum(operands)), rtol=1e-10, atol=1e-10)
    assert expected is None or expected in [step.kernel for step in plan.steps]


@given(spec=specs((1, 3)))
def test_products_per_line_equal_the_dense_einsum(spec):
    with mock.patch.object(LineProducts, "pay", lambda *_: True):
        for operation in (tn.weight_vjp, tn.conv_transpose_weight_vjp):
            check(operation(spec))


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        ((9, 7), {"padding": 1}),
        ((8, 11), {"stride": (2, 3), "padding": (2, 1)}),
        ((8, 9), {"stride": (1, 2), "dilation": (2, 3), "padding": 3}),
        ((12,), {"dilation": 2, "stride": 3}),
        ((5, 4, 6), {"padding": (0, 1, 2), "stride": (1, 2, 2)}),
    ],
)
def test_products_per_line_are_used_and_meet_no_padding(size, geometry):
    spec = tn.ConvSpec((3, 4, *size), 6, 3, **geometry)
    with mock.patch.object(LineProducts, "pay", lambda *_: True):
        check(tn.weight_vjp(spec), "line products")
        made = make_plan(tn.weight_vjp(spec), torch.float64, CPU)
    multiplied = []
    original = torch.Tensor.addmm_

    def counting(place, left, right, **named):
        multiplied.append(left.shape[0] * left.shape[1] * right.shape[1])
        return original(place, left, right, **named)

    operands = random_operands(tn.weight_vjp(spec))
    with mock.patch.object(torch.Tensor, "addmm_", counting):
        made.run([operands[slot] for slot in made.slots])
    assert sum(multiplied) == spec.multiply_adds == made.multiplications


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (tn.ConvSpec((32, 32, 56, 56), 16, 1), "summed matmul"),
        (tn.ConvSpec((32, 64, 56, 56), 128, 1, stride=2), "summed matmul"),
        (tn.ConvSpec((32, 3, 64, 64), 96, 4, stride=4), "summed matmul"),  # blocks: a patch embedding
        (tn.ConvSpec((32, 960, 7, 7), 320, 1), "convolution_backward (weight)"),  # products larger than the images
        (tn.ConvSpec((32, 512, 7, 7), 512, 3, padding=1), "line products"),
        (tn.ConvSpec((32, 4, 56, 56), 64, 3, padding=1), "convolution_backward (weight)"),
        (tn.ConvSpec((32, 64, 56, 56), 64, 3, padding=1), "convolution_backward (weight)"),
        (tn.ConvSpec((32, 1024, 7, 7), 1024, 3, padding=1, groups=2), "convolution_backward (weight)"),
        (tn.ConvSpec((2, 512, 7, 7), 512, 3, padding=1), "convolution_backward (weight)"),  # lines too short
    ],
    ids=str,
)
def test_what_computes_a_weight_gradient(spec, expected):
    assert kernels_of(spec) == [expected]


@pytest.mark.parametrize(
    ("spec", "on_older"),
    [
        (tn.ConvSpec((32, 256, 32, 32), 512, 2, stride=2), "matmul"),  # blocks
        (tn.ConvSpec((32, 512, 28, 28), 512, 3, padding=1), "line products"),
    ],
    ids=str,
)
@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
def test_native_kernels_serve_many_channels_where_they_are_fast(spec, on_older, processor):
    with mock.patch.object(torch.backends.cpu, "get_cpu_capability", lambda: processor):
        assert kernels_of(spec) == [on_older if processor == "AVX2" else "convolution_backward (weight)"]


def test_reduced_precision_is_not_rounded_between_images():
    spec = tn.ConvSpec((32, 32, 56, 56), 16, 1)
    assert kernels_of(spec, torch.bfloat16) == ["convolution_backward (weight)"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_entries_that_meet_padding_alone_are_zero(dtype):
    spec = tn.ConvSpec((5, 8, 1), 12, 3, stride=4, padding=2, groups=4)
    for _ in range(20):
        junk = torch.full((12, 2, 3), torch.finfo(dtype).max, dtype=dtype)
        x, y = torch.randn(spec.input_shape, dtype=dtype), torch.randn(spec.output_shape, dtype=dtype)
        del junk
        grad = tn.weight_vjp(spec).contract(input=x, output_grad=y)
        assert not grad[..., :2].any() and grad[..., 2].any()


def test_autocast_leaves_contractions_alone():
    x, y = torch.randn(4, 16, 64, 64), torch.randn(4, 64, 64, 64)
    spec = tn.ConvSpec(x.shape, 64, 5, padding=2)
    thin, pointwise = tn.ConvSpec((4, 4, 64, 64), 64, 3, padding=1), tn.ConvSpec(x.shape, 64, 1)
    for net, operands in (
        (tn.kfac_reduce(spec), {"input": x}),
        (tn.constant_input_weight_vjp(spec), {"mean": x.mean((2, 3)), "output_grad": y}),
        (tn.weight_vjp(thin), {"input": x[:, :4].contiguous(), "output_grad": y}),
        (tn.weight_vjp(pointwise), {"input": x, "output_grad": y}),
    ):
        expected = net.contract(operands)
        with torch.autocast("cpu", torch.bfloat16):
            found = net.contract(operands)
        assert torch.equal(found, expected)


def test_few_columns_are_not_multiplied_image_by_image():
    assert kernels_of(tn.ConvSpec((32, 96, 28, 28), 32, 1), operation=tn.input_vjp) == ["batched matmul"]
    assert kernels_of(tn.ConvSpec((32, 960, 7, 7), 320, 1), operation=tn.input_vjp) != ["batched matmul"]
