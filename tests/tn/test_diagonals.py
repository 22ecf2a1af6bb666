"""Depthwise weight gradients through matrix products and sums over their diagonals, or over pairs that meet."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp import tn
from randbp.kernels import use
from randbp.kernels.operator import is_installed
from randbp.tn.execute import diagonals
from randbp.tn.planning.plan import make_plan

from .strategies import another_machine, random_operands, specs

CPU = torch.device("cpu")
WAYS = dict(zip(("pairs", "rows", "meetings"), diagonals.WAYS, strict=True))
MEETING_SUMS = diagonals.WAYS[-1].name


def depthwise(spec: tn.ConvSpec) -> tn.ConvSpec:
    """The spec with its groups as the only channels."""
    shape = (spec.batch_size, spec.groups, *spec.input_size)
    geometry = spec.kernel_size, spec.stride, spec.padding, spec.dilation
    return tn.ConvSpec(shape, spec.groups, *geometry, spec.groups)


def contracted(net: tn.TensorNetwork, way: str, chunk: int, block: int) -> tuple[tn.Plan, torch.Tensor, torch.Tensor]:
    """A plan forced into one of the two ways, its result, and the dense einsum's."""
    with mock.patch.object(diagonals, "fastest_way", lambda *_: WAYS[way]), another_machine(chunk=chunk, block=block):
        plan = make_plan(net, torch.float64, CPU)
        operands = random_operands(net)
        result = plan.run([operands[slot] for slot in plan.slots])
    return plan, result, torch.einsum(*net.einsum(operands))


@pytest.mark.parametrize("way", WAYS)
@given(spec=specs((1, 4)), chunk=st.sampled_from([1, 500, 2**20]), block=st.sampled_from([1, 3, 16]))
def test_every_depthwise_gradient_equals_the_dense_einsum(way, spec, chunk, block):
    spec = depthwise(spec)
    for operation in (tn.weight_vjp, tn.per_example_weight_vjp, tn.conv_transpose_weight_vjp):
        _, result, oracle = contracted(operation(spec), way, chunk, block)
        torch.testing.assert_close(result, oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_a_way_says_what_it_multiplies(way):
    spec = tn.ConvSpec((2, 3, 9, 40), 3, 5, padding=2, groups=3)
    plan, result, oracle = contracted(tn.weight_vjp(spec), way, 2**20, 16)
    torch.testing.assert_close(result, oracle, rtol=1e-10, atol=1e-10)
    assert [step.kernel for step in plan.steps] == [WAYS[way].name]
    lines = 5 * 9 - 2 * (1 + 2)  # pairs of rows that meet
    expected = {
        "pairs": (9 * 40) ** 2,
        "rows": lines * 3 * 16 * 20,  # three blocks of 16 outputs that meet 20 inputs
        "meetings": lines * (5 * 40 - 2 * (1 + 2)),
    }
    assert plan.multiplications == 2 * 3 * expected[way]


@pytest.mark.parametrize(
    ("shape", "kernel", "groups", "expected"),
    [
        ((32, 1024, 8, 8), 7, 1024, "pairs + diagonal sums"),
        ((32, 512, 16, 16), 7, 512, "row products + diagonal sums"),
        ((32, 64, 512), 31, 64, "row products + diagonal sums"),
        ((4, 32, 16, 16, 16), 7, 32, "row products + diagonal sums"),
        ((32, 64, 32, 32), 3, 64, "convolution_backward (weight)"),  # a native kernel was written for it
        ((32, 512, 16, 16), 7, 256, "convolution_backward (weight)"),  # channels to make a product of
    ],
)
def test_large_depthwise_kernels_become_products(shape, kernel, groups, expected):
    spec = tn.ConvSpec(shape, shape[1], kernel, padding=kernel // 2, groups=groups)
    assert [step.kernel for step in tn.weight_vjp(spec).plan().steps] == [expected]
    if expected != "convolution_backward (weight)":
        for dtype, device in ((torch.bfloat16, CPU), (torch.float32, torch.device("meta"))):
            plan = make_plan(tn.weight_vjp(spec), dtype, device)
            assert [step.kernel for step in plan.steps] == ["convolution_backward (weight)"]


@pytest.mark.skipif(not is_installed("numba"), reason="a compiled version is what makes it fast")
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_pairs_of_small_images_are_summed_where_that_is_compiled(size):
    net = tn.weight_vjp(tn.ConvSpec((8, 512, size, size), 512, 7, padding=3, groups=512))
    assert [step.kernel for step in make_plan(net, torch.float32, CPU).steps] == [MEETING_SUMS]
    with use("reference"):
        assert [step.kernel for step in make_plan(net, torch.float32, CPU).steps] != [MEETING_SUMS]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_differentiable(way):
    net = tn.weight_vjp(tn.ConvSpec((2, 2, 4, 3), 2, 3, padding=1, groups=2))
    plan, _, _ = contracted(net, way, 2**20, 16)
    x, y = (tensor.requires_grad_() for tensor in random_operands(net).values())
    assert torch.autograd.gradcheck(lambda *tensors: plan.run(tensors), (x, y))
