"""Low-rank parts that ``Spatial`` keeps exactly: what they make exact, that they cost what is said, and no bias."""

import math
from collections.abc import Iterator
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from randbp import Estimator, Rounding, Spatial
from randbp.estimators import Draw, ranks, spatial
from randbp.estimators.low_rank import LowRank, add_low_rank_vjp, leading_directions, low_rank, shared_low_rank
from randbp.estimators.native import native_weight_vjp
from randbp.estimators.ranks import Ranks, affordable_ranks, keep_parts, kept_parts
from randbp.functional import conv, conv_spec, conv_transpose_spec
from randbp.tn import ConvSpec, LayerSpec, LinearSpec, linear_spec
from tests.cases import Case, cases, transposed_cases
from tests.estimators.test_means import estimate
from tests.estimators.test_unbiased import assert_unbiased

KINDS = ["plain", "channels last", "strided", "unused", "grouped", "transposed", "linear", "volume", "whole"]
# Positions left, directions at every position, in cells, and of the mean over examples.
RANKS = [Ranks(6, 2, 0, 0), Ranks(6, 0, 3, 0), Ranks(5, 1, 2, 0), Ranks(6, 0, 0, 2), Ranks(5, 2, 1, 2)]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(kind: str) -> LayerSpec:
    if kind == "linear":
        return linear_spec((24, 20, 8), 3)
    if kind == "transposed":
        return conv_transpose_spec(normal(24, 8, 4, 5), normal(8, 3, 3, 3), 2, 1, 0, 1, 1)
    if kind == "volume":
        return conv_spec(normal(20, 8, 3, 3, 4), normal(3, 8, 2, 2, 2), 1, 1, 1, 1)
    if kind == "whole":  # one output that meets everything
        return conv_spec(normal(24, 8, 6, 5), normal(4, 8, 6, 5), 1, 0, 1, 1)
    if kind == "unused":
        return conv_spec(normal(24, 8, 6, 7), normal(4, 8, 2, 1), 2, 0, 1, 1)
    groups = 2 if kind == "grouped" else 1
    return conv_spec(normal(24, 8 * groups, 6, 5), normal(4, 8, 3, 3), 2 if kind == "strided" else 1, 1, 1, groups)


def whole(part: LowRank) -> Tensor:
    """``[N, C, P]``, dense."""
    coefficients = part.coefficients if part.coefficients.dim() == 3 else part.coefficients.unsqueeze(0)
    grouped = coefficients.unflatten(1, (part.groups, -1))
    return torch.einsum("ngrp,gcr->ngcp", grouped, part.grouped).flatten(1, 2)


def input_of(parts: list[LowRank], spec: LayerSpec, kind: str) -> Tensor:
    """An input of means and parts, in the layout of the case."""
    batch, channels = spec.input_shape[:2]
    x = normal(batch, channels, 1, seed=2).expand(-1, -1, prod(spec.input_size))
    for part in parts:
        x = x + whole(part)
    x = x.reshape(spec.input_shape).contiguous()
    if kind == "linear":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=torch.channels_last) if kind == "channels last" else x


def random_parts(found: Ranks, spec: LayerSpec) -> list[LowRank]:
    """Parts that these ranks hold without loss: those in cells are constant there."""
    batch, channels, size = spec.batch_size, spec.in_channels, prod(spec.input_size)
    directions = torch.linalg.qr(normal(spec.groups, channels // spec.groups, 5, seed=3)).Q
    split = directions.split([found.fine, found.coarse, found.shared, 5 - found.fine - found.coarse - found.shared], 2)
    fine = normal(batch, spec.groups * found.fine, size, seed=4)
    cells = ranks.cells(spec)
    coarse = normal(batch, spec.groups * found.coarse, cells.cells, seed=5)[:, :, cells.cell_of(fine.device)]
    shared = normal(spec.groups * found.shared, size, seed=6)
    parts = []
    for some, values in zip(split, (fine, coarse, shared), strict=False):
        if some.shape[2]:
            centred = values - values.mean(-1, keepdim=True) if values is not coarse else values
            parts.append(LowRank(spec.groups, some.flatten(0, 1), centred))
    return parts


@pytest.fixture
def keep_ranks() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        spatial._plan.cache_clear()
        yield patch
    spatial._plan.cache_clear()


def fix(patch: pytest.MonkeyPatch, found: Ranks) -> None:
    patch.setattr(spatial, "affordable_ranks", lambda spec, budget: found)


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


def check_vjp(case: Case, spec: LayerSpec, shared: bool) -> None:
    rank = 2
    directions = normal(spec.in_channels, rank, seed=case.seed)
    shape = (spec.groups * rank, prod(spec.input_size))
    part = LowRank(spec.groups, directions, normal(*shape) if shared else normal(spec.batch_size, *shape))
    output_grad = normal(*spec.output_shape, seed=case.seed + 1)
    x = whole(part).expand(spec.batch_size, -1, -1).reshape(spec.input_shape)
    exact = native_weight_vjp(x, output_grad, spec)
    found = normal(*spec.weight_shape, seed=case.seed + 2)
    expected = found + 2 * exact
    add_low_rank_vjp(found, [part, part], output_grad, spec)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@given(case=cases(largest=6), shared=st.booleans())
def test_the_vjp_of_a_part_is_that_of_its_entries(case: Case, shared: bool) -> None:
    check_vjp(case, case.spec(), shared)


@given(case=transposed_cases(), shared=st.booleans())
def test_the_vjp_of_a_part_in_transposed_layers(case: Case, shared: bool) -> None:
    check_vjp(case, case.spec(), shared)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_what_few_directions_span(kind: str) -> None:
    spec = layer(kind)
    x = input_of(random_parts(Ranks(4, 2, 0, 2), spec), spec, kind)
    mean = x.flatten(2).mean(2)
    shared = shared_low_rank(x, mean, spec.groups, 1, Draw(0))
    rest = low_rank(x, mean, shared, spec.groups, 4, Draw(1))  # all of them, for one direction is not the shared part
    torch.testing.assert_close(whole(shared) + whole(rest) + mean.unsqueeze(2), x.flatten(2))
    less = low_rank(x, mean, shared, spec.groups, 1, Draw(1))
    assert (whole(shared) + whole(less) + mean.unsqueeze(2) - x.flatten(2)).norm() > 0.01 * x.norm()


@pytest.mark.parametrize("found", [RANKS[0], RANKS[1], RANKS[3]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_example", [True, False])
def test_inputs_of_means_and_parts_leave_no_error(
    kind: str, found: Ranks, per_example: bool, keep_ranks: pytest.MonkeyPatch
) -> None:
    spec = layer(kind)
    fix(keep_ranks, found)
    x, output_grad = input_of(random_parts(found, spec), spec, kind), normal(*spec.output_shape, seed=8)
    estimator = Spatial(0.5, per_example)
    exact = native_weight_vjp(x, output_grad, spec)
    torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 3), exact, rtol=1e-9, atol=1e-9)
    noisy = x + normal(*x.shape, seed=9)
    wrong = estimate(estimator, noisy, output_grad, spec, 3) - native_weight_vjp(noisy, output_grad, spec)
    assert wrong.norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("estimator", [Spatial(0.5), Spatial(0.5, False), Rounding(2, Spatial(0.5))], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_beside_parts_are_unbiased(kind: str, estimator: Estimator, keep_ranks: pytest.MonkeyPatch) -> None:
    """Two-sided z-tests of all entries and of the gradient's length; gradients follow the input. Error: 2e-6."""
    spec = layer(kind)
    fix(keep_ranks, Ranks(5, 3, 0, 2) if kind == "unused" else RANKS[-1])
    x, weight = normal(*spec.input_shape, seed=10), normal(*spec.weight_shape, seed=11)
    if kind == "unused":
        x[..., 1::2] += 5
    if kind == "linear":
        output_grad = F.linear(x.transpose(1, 2), weight[..., 0]).transpose(1, 2)
    elif kind == "transposed":
        output_grad = F.conv_transpose2d(x, weight, stride=2, padding=1)
    elif kind == "volume":
        output_grad = F.conv3d(x, weight, padding=1)
    else:
        stride, padding = 2 if kind in ("strided", "unused") else 1, int(kind not in ("unused", "whole"))
        output_grad = F.conv2d(x, weight, stride=stride, padding=padding, groups=spec.groups)
    if kind == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    exact = native_weight_vjp(x, output_grad, spec)
    draws = torch.stack([estimate(estimator, x, output_grad, spec, seed) for seed in range(200)])
    assert_unbiased(draws, exact)
    share = (draws * exact).flatten(1).sum(1) / exact.square().sum()
    assert abs(share.mean() - 1) < 5 * share.std() / math.sqrt(len(draws)) < 0.04


@pytest.mark.parametrize("found", RANKS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_read_back_and_hold_what_is_described(
    kind: str, found: Ranks, keep_ranks: pytest.MonkeyPatch
) -> None:
    spec = layer(kind)
    fix(keep_ranks, found)
    x = normal(*spec.input_shape)
    parts, held = keep_parts(found, x, x.flatten(2).mean(2), spec, Draw(0))
    assert sum(tensor.numel() for tensor in held) == found.entries(spec)
    for part, again in zip(parts, kept_parts(found, held, spec), strict=True):
        assert torch.equal(whole(part), whole(again))
    everything = Spatial(0.5).sketch(x, spec, Draw(0))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in everything}
    assert sum(storages.values()) == Spatial(0.5).describe(spec, x.dtype).held_bytes


@given(
    batch=st.integers(1, 64),
    channels=st.integers(1, 64),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    groups=st.sampled_from([1, 2]),
    keep=st.floats(0.02, 0.98),
    linear=st.booleans(),
)
def test_ranks_stay_within_the_budget(
    batch: int, channels: int, size: tuple[int, int], groups: int, keep: float, linear: bool
) -> None:
    shape = (batch, groups * channels, *size)
    spec = LinearSpec((*shape[:2], prod(size)), 4, 1) if linear else ConvSpec(shape, 4, 3, padding=1, groups=groups)
    budget = max(1, int(keep * prod(size)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "WIDE", 0)
        patch.setattr(ranks, "LARGE", 0)
        patch.setattr(ranks, "rebuilding_pays", lambda *_: False)
        found = affordable_ranks(spec, budget)
    assert found.left >= 1
    assert min(found.fine, found.coarse, found.shared) >= 0
    assert found.left * batch * spec.in_channels + found.entries(spec) <= budget * batch * spec.in_channels


def test_cells_are_left_out_where_some_positions_are_unused() -> None:
    """The mean is one of the used positions only, which means of cells would not respect."""
    every, unused = ConvSpec((128, 192, 17, 17), 192, 3, stride=2), ConvSpec((128, 192, 18, 18), 192, 3, stride=2)
    assert affordable_ranks(every, 17).coarse
    assert affordable_ranks(unused, 17).fine
    assert not affordable_ranks(unused, 17).coarse


def test_layers_with_little_arithmetic_have_no_parts() -> None:
    pointwise, small = ConvSpec((128, 96, 32, 32), 96, 1), ConvSpec((2, 96, 16, 16), 96, 3, padding=1)
    for spec in (pointwise, small, ConvSpec((128, 3, 32, 32), 96, 3, padding=1)):
        assert affordable_ranks(spec, 63) == Ranks(63)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("found", [RANKS[2], RANKS[-1]], ids=str)
def test_low_precision_is_close_to_double(dtype: torch.dtype, found: Ranks, keep_ranks: pytest.MonkeyPatch) -> None:
    fix(keep_ranks, found)
    spec = layer("plain")
    x, output_grad = normal(*spec.input_shape).to(dtype), normal(*spec.output_shape, seed=2).to(dtype)
    rounded = estimate(Spatial(0.5), x, output_grad, spec, 0)
    assert rounded.dtype == dtype
    wide = estimate(Spatial(0.5), x.double(), output_grad.double(), spec, 0)
    difference = (rounded.double() - wide).norm() / wide.norm()
    assert difference < {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-5}[dtype]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "output_grad"])
def test_non_finite_values_are_never_missed(value: float, where: str, keep_ranks: pytest.MonkeyPatch) -> None:
    """Directions mix channels, so that a bad input may show in more of them than in PyTorch, never in fewer."""
    fix(keep_ranks, RANKS[-1])
    x, weight, output_grad = (
        torch.randn(24, 8, 6, 5),
        torch.randn(4, 8, 3, 3, requires_grad=True),
        torch.randn(24, 4, 4, 3),
    )
    (x if where == "x" else output_grad)[1, 2, 2, 2] = value
    exact = torch.autograd.grad(F.conv2d(x, weight), weight, output_grad)[0]
    for seed in range(10):
        y = conv(x, weight, weight_vjp=Spatial(0.5), generator=torch.Generator().manual_seed(seed))
        bad = ~torch.autograd.grad(y, weight, output_grad)[0].isfinite()
        assert bad[~exact.isfinite()].flatten().any()
        expected = (~exact.isfinite()).flatten(2).any(2)
        assert bad.flatten(2).any(2)[expected].all()


def test_networks_whose_channels_are_alike_gain() -> None:
    """With the spectrum of a trained layer, at an eighth, the error falls below half of that without parts."""
    spec = ConvSpec((128, 64, 16, 16), 64, 3, padding=1)
    mixing = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    latent = torch.randn(128, 64, 256, generator=torch.Generator().manual_seed(1))
    x = (mixing @ (latent * 0.6 ** torch.arange(64).unsqueeze(1))).view(spec.input_shape)
    output_grad = torch.randn(spec.output_shape, generator=torch.Generator().manual_seed(2))
    exact = native_weight_vjp(x, output_grad, spec)
    assert affordable_ranks(spec, 31).fine
    for estimator in (Spatial(0.125), Spatial(0.5), Rounding(4, Spatial(0.125))):
        described = estimator.describe(spec, x.dtype).held_bytes
        assert sum(tensor.nbytes for tensor in estimator.sketch(x, spec, Draw(0))) == described
        assert described <= x.nbytes * estimator.keep * (1 if isinstance(estimator, Spatial) else 1.4)  # with scales
    with_parts = (estimate(Spatial(0.125), x, output_grad, spec, 0) - exact).norm()
    with pytest.MonkeyPatch.context() as patch:
        fix(patch, Ranks(31))
        spatial._plan.cache_clear()
        without = (estimate(Spatial(0.125), x, output_grad, spec, 0) - exact).norm()
    spatial._plan.cache_clear()
    assert with_parts < 0.5 * without


def test_coefficients_of_one_example_own_their_memory(keep_ranks: pytest.MonkeyPatch) -> None:
    """Those at every position are a view of all of them there, unless they are copied."""
    spec = conv_spec(normal(1, 8, 6, 6), normal(4, 8, 3, 3), 1, 1, 1, 1)
    fix(keep_ranks, Ranks(5, 1, 2, 0))
    held = Spatial(0.5).sketch(normal(*spec.input_shape), spec, Draw(0))
    assert sum(t.untyped_storage().nbytes() for t in held) == Spatial(0.5).describe(spec, torch.float64).held_bytes
