"""Runs of neighbouring positions: drawing, reading and multiplying them gives what position by position gives."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from randbp import Exact, Rounding, Spatial, tn
from randbp.estimators import Draw, Estimator, kept_vjps, rebuilt, run_products, spatial
from randbp.estimators import run_length as run_length_of
from randbp.estimators.positions import class_positions, gather_columns, windows
from randbp.estimators.ranks import Ranks, affordable_ranks
from randbp.estimators.runs import Runs, gather_runs, joined
from tests.cases import Case, cases
from tests.estimators.test_unbiased import assert_unbiased
from tests.tn.strategies import another_machine

CPU = torch.device("cpu")


@st.composite
def wide_cases(draw: st.DrawFn) -> Case:
    """Layers whose rows of inputs can be several runs long."""
    case = draw(cases(largest=7))
    row = draw(st.sampled_from([8, 12, 15, 16]))
    size = (*case.input_size[:-1], row)
    wide = Case(**{**vars(case), "input_size": size})
    x, weight, _ = wide.tensors()
    try:
        wide.native(x, weight, None)
    except RuntimeError:
        assume(False)
    return wide


def exact(case: Case, x: Tensor, weight: Tensor, output_grad: Tensor) -> Tensor:
    return torch.autograd.grad(case.native(x, weight, None), weight, output_grad)[0]


@given(case=wide_cases(), length=st.integers(2, 6), shared=st.booleans(), whole=st.booleans(), data=st.data())
def test_products_of_runs_are_the_weight_vjp_of_an_input_that_is_zero_elsewhere(
    case: Case, length: int, shared: bool, whole: bool, data: st.DataObject
) -> None:
    """Class by class, against autograd."""
    x, weight, _ = case.tensors()
    spec, output_grad = case.spec(), case.output_grad(case.native(x, weight, None))
    with patch.object(run_products, "REACH", 100):
        classes = [c for c in tn.position_classes(spec, "input") if run_products.serves(spec, c, length)]
    assume(classes)
    positions = data.draw(st.sampled_from(classes))
    examples, total = 1 if shared else case.batch, positions.size // length
    order = [data.draw(st.permutations(range(total))) for _ in range(examples)]
    runs = Runs(torch.tensor(order)[:, : data.draw(st.integers(0, total))], length)
    kept = x.detach().new_zeros(case.input_shape).flatten(2)
    where = class_positions(positions, spec, "input", CPU)[runs.positions].unsqueeze(1)
    where = where.expand(len(kept), kept.shape[1], -1)
    chosen = x.detach().flatten(2).gather(2, where)
    kept.scatter_(2, where, chosen)
    expected = exact(case, kept.view(case.input_shape), weight, output_grad)
    most = run_products.SMALL_PIECE if whole else 1
    with patch.multiple(run_products, PIECE=most, SMALL_PIECE=most):
        found = run_products.run_products(chosen.transpose(1, 2), runs, output_grad, positions, case.groups)
    met = expected.new_zeros(expected.shape)
    met[(slice(None), slice(None), *(slice(k.start, k.stop, k.step) for k in positions.kernels))] = found.flatten(0, 1)
    torch.testing.assert_close(met, expected, rtol=1e-10, atol=1e-12)


LAYERS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((3, 9, 8, 16), 5, (3, 3), {"padding": 1}),
    "3x3, no padding": ((2, 8, 7, 12), 4, (3, 3), {}),
    "3x3, stride 2": ((3, 8, 8, 16), 4, (3, 3), {"stride": 2, "padding": 1}),
    "3x3, dilation 2": ((2, 8, 6, 32), 4, (3, 3), {"padding": 2, "dilation": 2}),
    "2x2, stride 2": ((2, 8, 8, 16), 4, (2, 2), {"stride": 2}),
    "1x1": ((3, 9, 6, 8), 4, (1, 1), {}),
    "1x1, stride 2": ((3, 9, 8, 16), 4, (1, 1), {"stride": 2}),
    "1x1, groups": ((2, 16, 6, 8), 6, (1, 1), {"groups": 2}),
    "3x3, groups": ((2, 8, 8, 16), 4, (3, 3), {"padding": 1, "groups": 4}),
    "1x3, groups": ((2, 8, 6, 16), 4, (1, 3), {"padding": (0, 1), "groups": 2}),
    "length 5": ((3, 9, 48), 4, (5,), {"padding": 2}),
    "2x3x3": ((2, 8, 3, 4, 16), 3, (2, 3, 3), {"padding": 1}),
    "few channels": ((2, 3, 8, 16), 4, (3, 3), {"padding": 1}),
    "few channels, stride 2": ((2, 3, 8, 16), 4, (3, 3), {"stride": 2, "padding": 1}),
    "depthwise": ((2, 6, 8, 16), 6, (3, 3), {"padding": 1, "groups": 6}),
    "depthwise, stride 2": ((2, 6, 8, 16), 6, (3, 3), {"stride": 2, "padding": 1, "groups": 6}),
}


def layer(name: str) -> tuple[Case, tn.LayerSpec, Tensor, Tensor, Tensor]:
    """A layer, its input, its output gradient and its exact weight VJP, all in double precision."""
    shape, outputs, kernel, geometry = LAYERS[name]
    groups = geometry.get("groups", 1)
    settings = {"stride": 1, "padding": 0, "dilation": 1, "bias": False} | geometry
    sizes = shape[0], groups, shape[1] // groups, max(1, outputs // groups), shape[2:], kernel
    case = Case(*sizes, seed=3, **{key: value for key, value in settings.items() if key != "groups"})
    x, weight, _ = case.tensors()
    output_grad = case.output_grad(case.native(x, weight, None))
    return case, case.spec(), x.detach(), output_grad, exact(case, x, weight, output_grad)


def estimate(estimator: Estimator, x: Tensor, output_grad: Tensor, spec: tn.LayerSpec, seed: int) -> Tensor:
    draw = Draw(seed)
    return estimator.weight_vjp(estimator.sketch(x, spec, draw), output_grad, spec, draw)


@pytest.fixture
def always_runs() -> Iterator[None]:
    """Layers as small as these keep runs, too, whatever is lost by it."""

    def forget() -> None:
        for cached in (spatial._plan, run_length_of.run_length, run_length_of.rebuilt_run_length):
            cached.cache_clear()

    forget()
    with patch.object(run_length_of, "LOST", 0.45), patch.object(run_products, "REACH", 3):
        yield
    forget()


@pytest.fixture(params=[False, True], ids=["", "low-rank parts"])
def with_parts(request: pytest.FixtureRequest, always_runs: None) -> Iterator[bool]:
    """Without and with low-rank parts, which only layers larger than these have."""

    def ranks(spec: tn.LayerSpec, budget: int) -> Ranks:
        return Ranks(budget) if rebuilt.rebuilding_pays(spec, 1, torch.float32) else Ranks(3 * budget // 4, 1, 0, 1)

    with patch.object(spatial, "affordable_ranks", ranks if request.param else affordable_ranks):
        yield request.param


@pytest.mark.usefixtures("with_parts")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("estimator", [Spatial(0.5), Spatial(0.5, False), Spatial(0.4, center=False)], ids=str)
def test_samples_of_runs_are_unbiased(name: str, estimator: Spatial) -> None:
    """A z-test of all entries at once, error rate 1e-6 for each layer."""
    _, spec, x, output_grad, expected = layer(name)
    assert max(spatial._plan(estimator, spec, "input", x.dtype).runs) > 1
    draws = torch.stack([estimate(estimator, x, output_grad, spec, seed) for seed in range(400)])
    assert_unbiased(draws, expected)
    assert float((draws - expected).norm()) > 0.01 * float(expected.norm())


@pytest.mark.usefixtures("always_runs")
@pytest.mark.parametrize("name", ["1x1", "3x3", "3x3, groups"])
def test_the_variance_is_that_of_whole_runs(name: str) -> None:
    """The formula of `describe` for one example, within 5 % (4000 draws; its own scatter is below 1 %)."""
    _, full, all_x, all_grads, _ = layer(name)
    spec, x, output_grad = tn.layers.replace_batch(full, 1), all_x[:1], all_grads[:1]
    estimator = Spatial(0.4, center=False)
    plan = spatial._plan(estimator, spec, "input", x.dtype)
    ((_, count),), (length,) = plan.parts, plan.runs
    size = math.prod(spec.input_size)
    total, runs = size // length, []
    for run in range(total):
        only = torch.zeros_like(x).flatten(2)
        stretch = slice(run * length, (run + 1) * length)
        only[..., stretch] = x.flatten(2)[..., stretch]
        runs.append(Exact().weight_vjp((only.view_as(x),), output_grad, spec, Draw(0)))
    parts = torch.stack(runs)
    squares = float((parts - parts.mean(0)).square().sum())
    stated = (size / count - 1) * total / (total - 1) * squares
    draws = torch.stack([estimate(estimator, x, output_grad, spec, seed) for seed in range(4000)])
    assert math.isclose(float((draws - parts.sum(0)).square().sum()) / 4000, stated, rel_tol=0.05)


@pytest.mark.usefixtures("with_parts")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("estimator", [Spatial(0.5), Spatial(0.3, False), Spatial(0.4, center=False)], ids=str)
def test_orders_of_memory_and_contractions_do_not_change_an_estimate(name: str, estimator: Spatial) -> None:
    """Nor do pieces, networks instead of products of runs, and an input that is rebuilt position by position."""
    _, spec, x, output_grad, _ = layer(name)
    found = estimate(estimator, x, output_grad, spec, 5)
    inputs, grads = (
        (t, t.movedim(1, -1).contiguous().movedim(-1, 1), t.transpose(0, 1).contiguous().transpose(0, 1))
        for t in (x, output_grad)
    )
    for some_x, some_grad in product(inputs, grads):
        torch.testing.assert_close(estimate(estimator, some_x, some_grad, spec, 5), found)
    with patch.multiple(run_products, PIECE=1, SMALL_PIECE=1), another_machine(row_piece=1):
        torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 5), found)
    with (
        patch.object(kept_vjps, "serves", lambda *_: False),
        patch.object(rebuilt, "_fill_runs", rebuilt._fill_positions),
    ):
        torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 5), found)


@pytest.mark.usefixtures("always_runs")
@pytest.mark.parametrize("name", ["3x3", "1x1", "3x3, stride 2", "few channels"])
def test_runs_can_be_rounded(name: str) -> None:
    _, spec, x, output_grad, expected = layer(name)
    estimator = Rounding(8, Spatial(0.5))
    draws = torch.stack([estimate(estimator, x, output_grad, spec, seed) for seed in range(200)])
    assert_unbiased(draws, expected)


@given(
    size=st.integers(2, 12),
    length=st.integers(2, 5),
    share=st.floats(0, 1),
    batch=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_runs_are_drawn_as_positions_are(size: int, length: int, share: float, batch: int, seed: int) -> None:
    count = max(1, round(share * size))
    runs = windows(Draw(seed), size * length, count * length, batch, CPU, length)
    assert runs.length == length and runs.count == count * length and runs.examples == batch
    assert torch.equal(runs.numbers, windows(Draw(seed), size, count, batch, CPU).numbers)
    positions = runs.positions
    assert positions.shape == (batch, runs.count) and bool((positions.diff(dim=1) > 0).all())
    assert torch.equal(positions[:, ::length], runs.numbers * length)
    assert torch.equal(joined([runs, runs]).positions, torch.cat([positions, positions], 1))


@given(batch=st.integers(1, 3), channels=st.integers(1, 4), total=st.integers(1, 5), length=st.integers(2, 4))
def test_runs_are_read_as_their_positions_are(batch: int, channels: int, total: int, length: int) -> None:
    flat = torch.arange(float(batch * channels * total * length)).view(batch, channels, -1)
    for examples in {1, batch}:
        runs = Runs(
            torch.stack([torch.randperm(total, generator=torch.manual_seed(n)) for n in range(examples)]), length
        )
        expected = gather_columns(flat, Runs(runs.positions))
        for channels_first in (True, False):
            found = gather_runs(flat, runs, channels_first)
            assert torch.equal(found, expected)
            assert (found.transpose(0, 1) if channels_first else found).is_contiguous()


@given(case=wide_cases(), share=st.floats(0.05, 0.95))
def test_whole_runs_lose_little_and_fit_their_rows(case: Case, share: float) -> None:
    spec = case.spec()
    for positions in tn.position_classes(spec, "input"):
        count = max(1, int(share * positions.size))
        length = run_length_of.run_length(spec, positions, count)
        assert length == 1 or (length >= 4 and count // length >= 2 and count % length <= count / 10)
        row = positions.size if positions.is_pointwise else len(positions.positions[-1])
        assert row % length == 0
    size = math.prod(case.input_size)
    assert size % run_length_of.rebuilt_run_length(spec, max(1, int(share * size))) == 0


def test_sequences_keep_positions_one_by_one() -> None:
    """Their channels lie side by side in memory, so runs would cost error and save no time."""
    spec = tn.linear_spec((4, 64, 8), 5)
    (everywhere,) = tn.position_classes(spec, "input")
    assert run_length_of.run_length(spec, everywhere, 32) == run_length_of.rebuilt_run_length(spec, 32) == 1


def test_runs_can_be_left_out() -> None:
    spec = tn.ConvSpec((2, 8, 8, 32), 4, 3, padding=1)
    assert spatial._plan(Spatial(0.5), spec, "input", torch.float32).runs == (8,)
    assert spatial._plan(Spatial(0.5, runs=False), spec, "input", torch.float32).runs == (1,)


def test_classes_have_runs_all_or_none() -> None:
    """Here rows of 14 and of 13, of which only the former can be divided."""
    spec = tn.ConvSpec((8, 64, 27, 28), 64, 3, padding=1, stride=2)
    found = {spatial._plan(Spatial(keep), spec, "input", torch.float32).runs for keep in (0.1, 0.2, 0.3, 0.5)}
    assert all(min(runs) > 1 or max(runs) == 1 for runs in found)


def test_classes_suit_the_data_type() -> None:
    """Of large depthwise kernels, single precision rebuilds the input, half precision reads class by class."""
    spec = tn.ConvSpec((32, 96, 56, 56), 96, 7, padding=3, stride=2, groups=96)
    single, half = (spatial._plan(Spatial(0.5), spec, "input", dtype) for dtype in (torch.float32, torch.bfloat16))
    assert len(single.parts) == 1 and len(half.parts) == 4


def test_tensors_without_data_leave_nothing_behind() -> None:
    """Neither a fake tensor nor a default device, though tables are kept from one call to the next."""
    spec, estimator = tn.ConvSpec((5, 8, 48), 4, 3, padding=1), Spatial(0.5)
    x, output_grad = torch.ones(spec.input_shape), torch.ones(spec.output_shape)
    estimate(estimator, x, output_grad, spec, 0)  # plans are made with data
    run_products._meetings.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = estimate(estimator, torch.empty(spec.input_shape), torch.empty(spec.output_shape), spec, 0)
    assert isinstance(fake, FakeTensor)
    with torch.device("meta"):
        by_default = run_products._meetings(tn.position_classes(spec, "input")[0], 8)._tables(CPU)
    assert all(table.device == CPU for table in by_default if table is not None)
    assert type(estimate(estimator, x, output_grad, spec, 0)) is Tensor


@pytest.mark.parametrize("name", ["3x3", "3x3, groups", "2x3x3"])
def test_pieces_can_be_parts_of_an_example(name: str) -> None:
    _, spec, x, output_grad, _ = layer(name)
    everywhere = tn.position_classes(spec, "input")[0]
    with patch.object(run_products, "REACH", 3):
        assert run_products.serves(spec, everywhere, 4)
    runs = windows(Draw(1), everywhere.size, 4 * (everywhere.size // 8), len(x), CPU, 4)
    chosen = gather_columns(x.flatten(2), runs).transpose(1, 2)
    whole = run_products.run_products(chosen, runs, output_grad, everywhere, spec.groups)
    counts = []
    for most in (1, 500, 2000, 10_000):
        with (
            patch.multiple(run_products, PIECE=most, SMALL_PIECE=1),
            patch.object(run_products, "add_product", wraps=run_products.add_product) as product_of,
        ):
            found = run_products.run_products(chosen, runs, output_grad, everywhere, spec.groups)
        counts.append(product_of.call_count)
        torch.testing.assert_close(found, whole)
    if spec.groups == 1:
        assert counts[0] == runs.numbers.numel() > counts[1] > counts[-1]
