"""Every operation of the library against the naive einsum, and against PyTorch's own functions and
autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from randbp import tn
from randbp.tn.planning.plan import make_plan

from . import drawn_parts
from .strategies import another_machine, assert_matches_einsum, random_operands, specs

OPERATIONS = {operation.__name__: operation for operation in drawn_parts.OPERATIONS}


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=15, deadline=None)
@given(spec=specs())
def test_equals_naive_einsum(name, spec):
    net = OPERATIONS[name](spec)
    result = assert_matches_einsum(net)
    torch.testing.assert_close(net.simplify().contract(random_operands(net)), result, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operation", drawn_parts.OPERATIONS[: drawn_parts.OPERATIONS.index(tn.conv_transpose)])
@settings(max_examples=8, deadline=None)
@given(spec=specs())
def test_equals_naive_einsum_for_transposed_layers(operation, spec):
    assert_matches_einsum(operation(tn.ConvTransposeSpec(spec)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dims", [0, 4, 5])
def test_equals_naive_einsum_in_other_dimensions(name, dims):
    if dims == 0:
        spec = tn.ConvSpec((3, 4), 6, (), groups=2)
    else:
        kernel = (2, 1, 2, 1, 2)[:dims]
        spec = tn.ConvSpec(
            (2, 2, *(3, 2, 2, 2, 3)[:dims]),
            2,
            kernel,
            stride=(1, 1, 1, 2, 2)[:dims],
            padding=(1, 0, 0, 0, 1)[:dims],
        )
    assert_matches_einsum(OPERATIONS[name](spec))


def functional(dims):
    return {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]


def functional_transpose(dims):
    return {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[dims]


@settings(max_examples=40, deadline=None)
@given(spec=specs(symmetric=True))
def test_convolution_and_derivatives_equal_pytorch(spec):
    operands = random_operands(tn.conv(spec))
    x, w = operands["input"].requires_grad_(), operands["weight"].requires_grad_()
    arguments = (spec.stride, tuple(left for left, _ in spec.padding), spec.dilation, spec.groups)
    y = functional(spec.dims)(x, w, None, *arguments)
    v = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    vx, vw = torch.autograd.grad(y, (x, w), v)
    x, w, y = x.detach(), w.detach(), y.detach()
    close(tn.conv(spec).contract(input=x, weight=w), y)
    close(tn.weight_vjp(spec).contract(input=x, output_grad=v), vw)
    close(tn.input_vjp(spec).contract(weight=w, output_grad=v), vx)
    close(tn.weight_jvp(spec).contract(input=x, weight_tangent=w), y)
    close(tn.input_jvp(spec).contract(input_tangent=x, weight=w), y)
    each = per_example_gradients(spec, x, w, v, arguments)
    close(tn.per_example_weight_vjp(spec).contract(input=x, output_grad=v), each)
    flat = each.flatten(1)
    close(tn.gradient_gram(spec).contract(input=x, output_grad=v), flat @ flat.T)
    close(tn.ggn_diagonal(spec).contract(input=x, output_grad=v), (each**2).sum(0))
    close(tn.squared_gradient_norms(spec).contract(input=x, output_grad=v), (flat**2).sum(1))


def per_example_gradients(spec, x, w, v, arguments):
    gradients = []
    for xn, vn in zip(x, v, strict=True):
        weight = w.clone().requires_grad_()
        y = functional(spec.dims)(xn[None], weight, None, *arguments)
        gradients.append(torch.autograd.grad(y, weight, vn[None])[0])
    return torch.stack(gradients)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), groups=st.integers(1, 2), dims=st.integers(1, 3))
def test_transposed_convolution_and_derivatives_equal_pytorch(data, groups, dims):
    integers = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, stride, dilation, size = integers(1, 3), integers(1, 3), integers(1, 2), integers(2, 4)
    padding = tuple(min(p, d * (k - 1) // 2) for p, d, k in zip(integers(0, 2), dilation, kernel, strict=True))
    extra = tuple(min(e, max(s, d) - 1) for e, s, d in zip(integers(0, 2), stride, dilation, strict=True))
    shape = (2, 2 * groups, *size)
    spec = tn.transposed_spec(shape, 3 * groups, kernel, stride, padding, dilation, groups, extra)
    operands = random_operands(tn.conv_transpose(spec))
    x, w = operands["input"].requires_grad_(), operands["weight"].requires_grad_()
    y = functional_transpose(dims)(x, w, None, stride, padding, extra, groups, dilation)
    assert spec.input_shape == y.shape
    v = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    vx, vw = torch.autograd.grad(y, (x, w), v)
    x, w, y = x.detach(), w.detach(), y.detach()
    close(tn.conv_transpose(spec).contract(input=x, weight=w), y)
    close(tn.conv_transpose_weight_vjp(spec).contract(input=x, output_grad=v), vw)
    close(tn.conv_transpose_input_vjp(spec).contract(weight=w, output_grad=v), vx)
    close(tn.conv_transpose_weight_jvp(spec).contract(input=x, weight_tangent=w), y)
    close(tn.conv_transpose_input_jvp(spec).contract(input_tangent=x, weight=w), y)
    # The unfolded input turns the transposed convolution into a matrix product, group by group.
    unfolded = tn.unfold_transpose(spec).contract(input=x).unflatten(1, (groups, -1))
    matrix = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)  # g, d, c·k
    close((matrix @ unfolded).reshape(y.shape), y)
    n, _, _, positions = unfolded.shape
    expanded = torch.einsum("ngro,ngso->grs", unfolded, unfolded) / n
    close(tn.kfac_expand_transpose(spec).contract(input=x), expanded)
    mean = unfolded.sum(-1) / positions
    close(tn.kfac_reduce_transpose(spec).contract(input=x), torch.einsum("ngr,ngs->grs", mean, mean) / n)


@settings(max_examples=40, deadline=None)
@given(spec=specs(dims=(2, 2), symmetric=True))
def test_unfold_and_kfac_factors_equal_pytorch(spec):
    x = random_operands(tn.unfold(spec))["input"]
    unfolded = F.unfold(x, spec.kernel_size, spec.dilation, [left for left, _ in spec.padding], spec.stride)
    close(tn.unfold(spec).contract(input=x), unfolded)
    u = torch.randn(unfolded.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    folded = F.fold(
        u, spec.input_size, spec.kernel_size, spec.dilation, [left for left, _ in spec.padding], spec.stride
    )
    close(tn.fold(spec).contract(output_grad=u), folded)
    grouped = unfolded.unflatten(1, (spec.groups, -1))
    n, positions = spec.batch_size, unfolded.shape[-1]
    close(tn.kfac_expand(spec).contract(input=x), torch.einsum("ngro,ngso->grs", grouped, grouped) / n)
    mean = grouped.sum(-1) / positions
    close(tn.kfac_reduce(spec).contract(input=x), torch.einsum("ngr,ngs->grs", mean, mean) / n)


@pytest.mark.parametrize("partial", [(1, 0.0), (2**20, 1.0)])
@settings(max_examples=30, deadline=None)
@given(spec=specs(), shorter=st.sampled_from([1, 3]))
def test_box_sums_of_large_images(partial, spec, shorter):
    """The way that large images take, on small ones."""
    x = random_operands(tn.unfold(spec))["input"]
    net = tn.unfold(spec).sum(*(f"o{dim}" for dim in range(1, spec.dims + 1)))
    with another_machine(joint=0, small=0, partial_sums=partial[0], partial_share=partial[1], shorter=shorter):
        result = make_plan(net, torch.float64, torch.device("cpu")).run([x])
    close(result, tn.unfold(spec).contract(input=x).sum(-1))


@settings(max_examples=20, deadline=None)
@given(spec=specs())
def test_unfolded_kernel_is_the_convolution_as_a_matrix(spec):
    operands = random_operands(tn.conv(spec))
    toeplitz = tn.unfolded_kernel(spec).contract(weight=operands["weight"])
    x = operands["input"].reshape(spec.batch_size, spec.groups, -1)
    y = torch.einsum("gyx,ngx->ngy", toeplitz if spec.groups > 1 else toeplitz[None], x)
    close(y.reshape(spec.output_shape), tn.conv(spec).contract(operands))


def test_output_gradient_factors():
    spec = tn.ConvSpec((3, 4, 5, 4), 6, 2, groups=2)
    y = random_operands(tn.kfac_expand_output_grad(spec))["output_grad"]
    flat = y.reshape(3, 2, 3, -1)
    close(
        tn.kfac_expand_output_grad(spec).contract(output_grad=y),
        torch.einsum("ngdo,ngeo->gde", flat, flat) / (3 * flat.shape[-1]),
    )
    summed = flat.sum(-1)
    close(
        tn.kfac_reduce_output_grad(spec).contract(output_grad=y),
        torch.einsum("ngd,nge->gde", summed, summed) / 3,
    )


def test_ggn_diagonal_sums_over_factor_columns():
    spec = tn.ConvSpec((3, 4, 5), 6, 2)
    net = tn.ggn_diagonal(spec, columns=2)
    operands = random_operands(net)
    single = tn.ggn_diagonal(spec)
    expected = sum(single.contract(input=operands["input"], output_grad=column) for column in operands["output_grad"])
    close(net.contract(operands), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128, torch.int64]
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_data_types(name, dtype):
    spec = tn.ConvSpec((2, 4, 5, 5), 4, 3, stride=2, padding=1, groups=2)
    net = OPERATIONS[name](spec)
    operands = random_operands(net, dtype)
    result = net.contract(operands)
    wide = dtype if dtype in (torch.complex128, torch.int64) else torch.float64
    oracle = torch.einsum(*net.scaled(1 / net.scale).einsum({slot: t.to(wide) for slot, t in operands.items()}))
    oracle = oracle if net.scale == 1 else oracle * net.scale
    if dtype.is_floating_point or dtype.is_complex:
        assert result.dtype == dtype
    tolerance = {torch.float16: 3e-2, torch.bfloat16: 2e-1, torch.float32: 1e-4}.get(dtype, 1e-10)
    torch.testing.assert_close(
        result.to(oracle.dtype), oracle, rtol=tolerance, atol=tolerance * float(oracle.abs().max())
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_empty_batch(name):
    spec = tn.ConvSpec((0, 4, 5, 5), 4, 3, groups=2)
    net = OPERATIONS[name](spec)
    result = net.contract(random_operands(net))
    assert result.shape == net.output_shape
    assert not result.isnan().any()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operation", [tn.conv, tn.weight_vjp, tn.unfold, tn.kfac_reduce, tn.gradient_gram])
def test_what_is_no_layer_is_refused(operation: Callable[[Any], tn.TensorNetwork]) -> None:
    with pytest.raises(
        TypeError, match=r"^spec='x': expected a tn.ConvSpec, tn.ConvTransposeSpec or tn.linear_spec\(…\)$"
    ):
        operation("x")
