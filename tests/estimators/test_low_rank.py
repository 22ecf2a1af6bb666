"""Low-rank parts that ``Spatial`` keeps exactly: what they make exact, and when they are kept."""

from math import prod
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from randbp import Rounding, Spatial
from randbp.estimators import Draw, spatial
from randbp.estimators.low_rank import LowRank, affordable_rank, leading_directions, low_rank, price
from randbp.functional import conv_spec
from randbp.layers.grouped_weights import by_group
from randbp.tn import ConvSpec, LayerSpec
from randbp.tn.execute.layer_vjps import native_weight_vjp
from tests.cases import Case, cases, transposed_cases
from tests.estimators.test_spatial import estimate


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(part: LowRank) -> Tensor:
    """``[N, C, P]``."""
    return torch.einsum("ngrp,gcr->ngcp", part.coefficients.unflatten(1, (part.groups, -1)), part.grouped).flatten(1, 2)


def random_part(spec: LayerSpec, rank: int) -> LowRank:
    """A part with the mean zero."""
    directions = torch.linalg.qr(normal(spec.groups, spec.in_channels // spec.groups, rank, seed=3)).Q
    values = normal(spec.batch_size, spec.groups * rank, prod(spec.input_size), seed=4)
    return LowRank(spec.groups, directions.flatten(0, 1), values - values.mean(2, keepdim=True))


@given(rank=st.integers(1, 4), groups=st.integers(1, 2), width=st.integers(5, 12), seed=st.integers(0, 1000))
def test_leading_directions_are_orthonormal_and_nearly_the_best(rank: int, groups: int, width: int, seed: int) -> None:
    spectrum = 0.5 ** torch.arange(width, dtype=torch.float64)
    bases = [torch.linalg.qr(normal(width, width, seed=seed + group)).Q for group in range(groups)]
    columns = torch.stack([basis * spectrum @ normal(width, 60, seed=seed + 7) for basis in bases])
    left = 0.0
    for start in range(20):
        found = leading_directions(columns, rank, Draw(start))
        torch.testing.assert_close(found.mT @ found, torch.eye(rank, dtype=torch.float64).expand(groups, -1, -1))
        left += float((columns - found @ (found.mT @ columns)).square().sum()) / 20
    best = float(torch.linalg.svdvals(columns)[:, rank:].square().sum())
    assert best <= left * (1 + 1e-9) <= 1.5 * best


@given(case=st.one_of(cases(largest=6), transposed_cases()))
def test_the_vjp_of_a_part_is_that_of_its_entries(case: Case) -> None:
    spec = case.spec()
    directions = normal(spec.in_channels, 2, seed=case.seed)
    part = LowRank(spec.groups, directions, normal(spec.batch_size, spec.groups * 2, prod(spec.input_size)))
    output_grad, found = normal(*spec.output_shape, seed=5), normal(*spec.weight_shape, seed=6)
    expected = found + native_weight_vjp(dense(part).reshape(spec.input_shape), output_grad, spec)
    part.add_weight_vjp(by_group(found, spec), output_grad, spec)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_inputs_of_means_and_parts_leave_no_error(groups: int, channels_last: bool) -> None:
    spec = conv_spec(normal(4, 8 * groups, 6, 8), normal(4, 8, 3, 3), 1, 1, 1, groups)
    x = (dense(random_part(spec, 2)) + normal(4, 8 * groups, 1, seed=2)).view(spec.input_shape)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(
        dense(low_rank(x, x.mean((2, 3)), groups, 2, Draw(1))) + x.mean((2, 3)).unsqueeze(2), x.flatten(2)
    )
    output_grad = normal(*spec.output_shape, seed=8)
    spatial.class_plan.cache_clear()
    with patch.object(spatial, "affordable_rank", lambda *_: 2):
        for estimator in (Spatial(0.5), Spatial(0.6, per_example=False)):
            exact = native_weight_vjp(x, output_grad, spec)
            torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 3), exact, rtol=1e-9, atol=1e-9)
            noisy = x + normal(*x.shape, seed=9)
            wrong = estimate(estimator, noisy, output_grad, spec, 3) - native_weight_vjp(noisy, output_grad, spec)
            assert wrong.norm() > 0.01 * exact.norm()
        for dtype, bound in ((torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float32, 1e-5)):
            low = estimate(Spatial(0.5), x.to(dtype), output_grad.to(dtype), spec, 3)
            wide = estimate(Spatial(0.5), x.to(dtype).double(), output_grad.to(dtype).double(), spec, 3)
            assert low.dtype == dtype and (low.double() - wide).norm() < bound * wide.norm()
    spatial.class_plan.cache_clear()


@given(
    batch=st.integers(1, 64),
    channels=st.integers(1, 64),
    size=st.integers(1, 150),
    groups=st.sampled_from([1, 2]),
    budget=st.integers(1, 100),
)
def test_ranks_stay_within_the_budget(batch: int, channels: int, size: int, groups: int, budget: int) -> None:
    spec = ConvSpec((batch, groups * channels, size), 4, 3, padding=1, groups=groups)
    with patch.multiple("randbp.estimators.low_rank", WIDE=0, LARGE=0):
        rank = affordable_rank(spec, budget)
    assert 0 <= rank <= channels // 2 and rank * price(spec) <= 3 / 8 * budget + 1e-9


def test_layers_with_little_arithmetic_have_no_part() -> None:
    pointwise, small = ConvSpec((128, 96, 32, 32), 96, 1), ConvSpec((2, 96, 16, 16), 96, 3, padding=1)
    assert not any(affordable_rank(spec, 63) for spec in (pointwise, small))
    unused = ConvSpec((128, 192, 18, 18), 192, 3, stride=2)  # the mean is one of the used positions only
    assert not spatial.class_plan(Spatial(0.2), unused, "input").rank


def test_networks_whose_channels_are_alike_gain() -> None:
    """With the spectrum of a trained layer, at an eighth, the error falls below half of that without a part."""
    spec = ConvSpec((128, 64, 16, 16), 64, 3, padding=1)
    mixing = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    latent = torch.randn(128, 64, 256, generator=torch.Generator().manual_seed(1))
    x = (mixing @ (latent * 0.6 ** torch.arange(64).unsqueeze(1))).view(spec.input_shape)
    output_grad = torch.randn(spec.output_shape, generator=torch.Generator().manual_seed(2))
    exact = native_weight_vjp(x, output_grad, spec)
    for estimator in (Spatial(0.125), Spatial(0.5), Rounding(4, Spatial(0.125))):
        described = estimator.describe(spec, x.dtype).held_bytes
        assert sum(tensor.nbytes for tensor in estimator.sketch(x, spec, Draw(0))) == described
        assert described <= x.nbytes * estimator.keep * (1 if isinstance(estimator, Spatial) else 1.4)  # with scales
    with_part = (estimate(Spatial(0.125), x, output_grad, spec, 0) - exact).norm()
    spatial.class_plan.cache_clear()
    with patch.object(spatial, "affordable_rank", lambda *_: 0):
        without = (estimate(Spatial(0.125), x, output_grad, spec, 0) - exact).norm()
    spatial.class_plan.cache_clear()
    assert with_part < 0.5 * without
