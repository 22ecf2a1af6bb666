"""Control variates: what they make exact, and their VJPs against autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from randbp import Batch, Estimator, LowResolution, NormSpatial, Spatial
from randbp.estimators import Draw
from randbp.estimators.controls import CellMeans, cell_of
from randbp.functional import conv_spec, conv_transpose_spec
from randbp.layers.grouped_weights import from_groups
from randbp.tn import LayerSpec, linear_spec
from randbp.tn.execute.kept_positions import input_vjp_of_mean, weight_vjp_of_mean
from randbp.tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from tests.cases import Case, cases, linear_cases, transposed_cases
from tests.estimators.test_spatial import estimate
from tests.estimators.test_unbiased import assert_unbiased

CENTRED = [Spatial(0.4), Spatial(0.4, per_example=False), LowResolution(0.5, block=2), NormSpatial(0.4)]
CENTRED += [NormSpatial(0.5, center=2), NormSpatial(0.4, top=0.3)]


@given(case=cases(largest=8), block=st.integers(1, 9))
def test_means_are_those_of_each_cell(case: Case, block: int) -> None:
    x, grid = case.tensors()[0].detach(), CellMeans(case.input_size, block)
    spread = grid.means(x).unflatten(1, (-1, grid.cells))[:, :, cell_of(grid, x.device)]
    assert grid.entries(tuple(x.shape)) == grid.means(x).numel()
    torch.testing.assert_close(grid.means(spread.reshape(x.shape)), grid.means(x))
    torch.testing.assert_close(spread.sum(2), x.flatten(2).sum(2))
    cells = spread[0, 0].unique().numel()
    assert cells <= grid.cells == math.prod(-(-size // block) for size in case.input_size)


@pytest.mark.parametrize("sizes", [(9,), (7, 4), (5, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_in_reduced_precision(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """PyTorch's avg_pool3d takes neither on a CPU."""
    x, grid = torch.randn(2, 3, *sizes).to(dtype), CellMeans(sizes, 2)
    assert grid.cells > 1 and grid.means(x).dtype is dtype
    torch.testing.assert_close(grid.means(x).float(), grid.means(x.float()), rtol=0.02, atol=0.02)


@given(case=st.one_of(cases(largest=8), transposed_cases(), linear_cases()))
def test_vjps_of_a_constant(case: Case) -> None:
    x, weight, _ = case.tensors()
    spec, kernel = case.spec(), weight.detach()
    x, output_grad = case.channels_second(x.detach()), torch.randn(spec.output_shape, dtype=x.dtype)
    mean = x.flatten(2).mean(2) if x.dim() > 2 else x
    constant = mean.view(*mean.shape, *[1] * spec.dims).expand(spec.input_shape).contiguous()
    found = from_groups(weight_vjp_of_mean(mean, output_grad, spec), spec)
    torch.testing.assert_close(found, native_weight_vjp(constant, output_grad, spec))
    like = output_grad.flatten(2).mean(2)
    constant = like.view(*like.shape, *[1] * spec.dims).expand(spec.output_shape).contiguous()
    kernel = kernel.view(spec.weight_shape)
    torch.testing.assert_close(input_vjp_of_mean(like, kernel, spec), native_input_vjp(constant, kernel, spec))


@pytest.mark.parametrize(
    ("estimator", "stride"), [*((each, 1) for each in CENTRED), *((each, 2) for each in CENTRED)], ids=str
)
def test_other_factors_that_are_constant_leave_no_error(estimator: Estimator, stride: int) -> None:
    """``Σ_i (X - m) V`` vanishes for constant ``V``, and so does its estimate: both factors are centred."""
    generator = torch.Generator().manual_seed(stride)
    x = torch.randn(4, 9, 8, 7, generator=generator, dtype=torch.float64)
    weight = torch.zeros(5, 9, 1, 1, dtype=torch.float64)
    spec = conv_spec(x, weight, stride, 0, 1, 1)
    output_grad = (
        torch.randn(4, 5, 1, 1, generator=generator, dtype=torch.float64).expand(spec.output_shape).contiguous()
    )
    exact = native_weight_vjp(x, output_grad, spec)
    torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 0), exact, rtol=1e-10, atol=1e-10)
    noisy = output_grad + torch.randn(spec.output_shape, generator=generator, dtype=torch.float64)
    assert not torch.allclose(estimate(estimator, x, noisy, spec, 0), native_weight_vjp(x, noisy, spec), rtol=1e-3)


def layer(kind: str) -> tuple[Tensor, LayerSpec]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if kind == "linear":
        x = normal(24, 8, 10)
        return x, linear_spec((24, 10, 8), 3)
    if kind == "transposed":
        x = normal(24, 8, 4, 4)
        return x, conv_transpose_spec(x, normal(8, 3, 3, 3), 2, 1, 0, 1, 1)
    x = normal(24, 16 if kind == "grouped" else 8, 6, 5)
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    stride, groups = 2 if kind == "strided" else 1, 2 if kind == "grouped" else 1
    return x, conv_spec(x, normal(4, 8, 3, 3), stride, 1, 1, groups)


KINDS = ["plain", "channels last", "strided", "grouped", "transposed", "linear"]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_whose_examples_agree_in_one_factor_have_no_error(kind: str) -> None:
    x, spec = layer(kind)
    output_grad = torch.randn(spec.output_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for left, right in ((x[:1].expand_as(x), output_grad), (x, output_grad[:1].expand_as(output_grad))):
        left, right = left.contiguous(), right.contiguous()
        exact = native_weight_vjp(left, right, spec)
        found = estimate(Batch(0.25, center=True), left, right, spec, 6)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-9)
    exact = native_weight_vjp(x, output_grad, spec)
    assert (estimate(Batch(0.25, center=True), x, output_grad, spec, 6) - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_centred_batches_are_unbiased(kind: str) -> None:
    """A two-sided z-test of all entries, and of the gradient's length. Error: 2e-6 per case."""
    x, spec = layer(kind)
    output_grad = torch.randn(spec.output_shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    output_grad += x.mean((1, *range(2, x.dim()))).view(-1, *(1 for _ in spec.output_shape[1:]))
    exact = native_weight_vjp(x, output_grad, spec)
    draws = torch.stack([estimate(Batch(0.25, center=True), x, output_grad, spec, seed) for seed in range(400)])
    assert_unbiased(draws, exact)
    share = (draws * exact).flatten(1).sum(1) / exact.square().sum()
    assert abs(share.mean() - 1) < 5 * share.std() / math.sqrt(len(draws)) < 0.3


def test_centred_batches_hold_what_they_describe() -> None:
    x, spec = layer("plain")
    for keep, tensors in ((0.5, 2), (0.1, 1), (1.0, 1)):
        estimator = Batch(keep, center=True)
        held = estimator.sketch(x, spec, Draw(0))
        assert len(held) == tensors
        assert sum(tensor.nbytes for tensor in held) == estimator.describe(spec, x.dtype).held_bytes <= keep * x.nbytes
    with pytest.raises(ValueError, match=r"^Batch: center=True, expected False with bernoulli=True$"):
        Batch(0.5, bernoulli=True, center=True)
