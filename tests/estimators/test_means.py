"""Means that are kept exactly beside a sample: what they make exact, and that the estimate stays unbiased."""

import math

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from randbp import Batch, Estimator, LowResolution, NormSpatial, Spatial
from randbp.estimators import Draw
from randbp.estimators.means import sampled_grid
from randbp.estimators.native import native_weight_vjp
from randbp.functional import conv_spec, conv_transpose_spec
from randbp.tn import LayerSpec, linear_spec, position_classes
from tests.cases import Case, cases
from tests.estimators.test_unbiased import assert_unbiased

CENTRED = [Spatial(0.4), Spatial(0.4, per_example=False), LowResolution(0.5, block=2), NormSpatial(0.4)]
CENTRED += [NormSpatial(0.5, center=2), NormSpatial(0.4, top=0.3)]


def estimate(estimator: Estimator, x: Tensor, output_grad: Tensor, spec: LayerSpec, seed: int) -> Tensor:
    draw = Draw(seed)
    return estimator.weight_vjp(estimator.sketch(x, spec, draw), output_grad, spec, draw)


@given(case=cases(largest=6))
def test_a_grid_is_the_positions_that_are_sampled(case: Case) -> None:
    x, weight, _ = case.tensors()
    classes = position_classes(conv_spec(x, weight, **case.geometry), "input")
    assume(classes)
    grid = sampled_grid(tuple((each, 1) for each in classes))
    union = torch.zeros(x.shape[2:], dtype=torch.bool)
    for each in classes:
        union[torch.meshgrid(*(torch.tensor(list(some)) for some in each.positions), indexing="ij")] = True
    if grid is None:  # three neighbours in a dimension are not evenly spaced
        lines = [union.movedim(dim, 0).reshape(len(union.movedim(dim, 0)), -1).any(1) for dim in range(union.dim())]
        assert max(line.nonzero().flatten().diff().unique().numel() for line in lines) > 1
    else:
        assert union.sum() == union[grid].sum() == union[grid].numel()


@pytest.mark.parametrize(
    ("estimator", "stride"), [*((each, 1) for each in CENTRED), *((each, 2) for each in CENTRED[:2])], ids=str
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
        torch.testing.assert_close(
            estimate(Batch(0.25, center=True), left, right, spec, 6), exact, rtol=1e-10, atol=1e-9
        )
    error = (
        estimate(Batch(0.25, center=True), x, output_grad, spec, 6) - native_weight_vjp(x, output_grad, spec)
    ).norm()
    assert error > 0.1 * native_weight_vjp(x, output_grad, spec).norm()


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
