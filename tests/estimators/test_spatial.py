"""Positions that lie in segments, in classes, or are restored, and low-rank parts: no way to an estimate changes it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from randbp import Estimator, Exact, Rounding, Spatial, kernels, tn
from randbp.estimators import Draw, positions, spatial
from randbp.kernels.operator import is_installed
from randbp.layers.layer_specs import replace_batch
from randbp.tn.execute import kept_positions, segments
from randbp.tn.planning import machine
from tests.cases import Case
from tests.estimators.test_unbiased import assert_unbiased

LAYERS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((3, 9, 8, 16), 5, (3, 3), {"padding": 1}),
    "3x3, no padding": ((2, 8, 7, 12), 4, (3, 3), {}),
    "3x3, stride 2": ((3, 8, 8, 16), 4, (3, 3), {"stride": 2, "padding": 1}),
    "3x3, dilation 2": ((2, 8, 6, 32), 4, (3, 3), {"padding": 2, "dilation": 2}),
    "2x2, stride 2": ((2, 8, 8, 16), 4, (2, 2), {"stride": 2}),
    "1x1": ((3, 9, 12, 16), 4, (1, 1), {}),
    "1x1, stride 2": ((3, 9, 16, 32), 4, (1, 1), {"stride": 2}),
    "1x1, groups": ((2, 16, 12, 12), 6, (1, 1), {"groups": 2}),
    "3x3, groups": ((2, 16, 8, 16), 4, (3, 3), {"padding": 1, "groups": 2}),
    "length 5": ((3, 9, 48), 4, (5,), {"padding": 2}),
    "2x3x3": ((2, 8, 3, 4, 16), 3, (2, 3, 3), {"padding": 1}),
    "few channels": ((2, 3, 8, 16), 4, (3, 3), {"padding": 1}),
    "few channels, stride 3": ((2, 3, 9, 17), 4, (2, 2), {"stride": 3}),
    "depthwise": ((2, 6, 8, 16), 6, (3, 3), {"padding": 1, "groups": 6}),
    "depthwise, length 200": ((3, 6, 200), 6, (5,), {"padding": 4, "groups": 6, "dilation": 2}),
    "depthwise, stride 2": ((2, 6, 12, 16), 12, (3, 3), {"stride": 2, "padding": 1, "groups": 6}),
}
SAMPLERS = [Spatial(0.5), Spatial(0.4, per_example=False), Spatial(0.3, center=False)]


def layer(name: str) -> tuple[tn.LayerSpec, Tensor, Tensor]:
    """A layer, its input and its output gradient in double precision."""
    shape, outputs, kernel, geometry = LAYERS[name]
    groups = geometry.get("groups", 1)
    settings = {"stride": 1, "padding": 0, "dilation": 1, "bias": False} | geometry
    sizes = shape[0], groups, shape[1] // groups, max(1, outputs // groups), shape[2:], kernel
    case = Case(*sizes, seed=3, **{key: value for key, value in settings.items() if key != "groups"})
    x, weight, _ = case.tensors()
    return case.spec(), x.detach(), case.output_grad(case.native(x, weight, None))


def estimate(estimator: Estimator, x: Tensor, output_grad: Tensor, spec: tn.LayerSpec, seed: int) -> Tensor:
    draw = Draw(seed)
    return estimator.weight_vjp(estimator.sketch(x, spec, draw), output_grad, spec, draw)


def exact(x: Tensor, output_grad: Tensor, spec: tn.LayerSpec) -> Tensor:
    return Exact().weight_vjp((x,), output_grad, spec, Draw(0))


@pytest.fixture(params=[0, 2], ids=["", "low-rank part"])
def rank(request: pytest.FixtureRequest) -> Iterator[int]:
    """Layers as small as these keep segments and a low-rank part, too, whatever is lost by it."""

    def forget() -> None:
        for cached in (spatial.class_plan, positions.segment_length):
            cached.cache_clear()

    forget()
    affordable = lambda spec, budget: request.param * (budget > request.param * spatial.price(spec))  # noqa: E731
    with (
        patch.multiple(positions, LOST=0.45, SHORTEST=4),
        patch.object(segments, "PLANE", 1),
        patch.object(spatial, "affordable_rank", affordable),
    ):
        yield request.param
    forget()


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("estimator", SAMPLERS, ids=str)
def test_samples_are_unbiased(name: str, estimator: Spatial) -> None:
    """A z-test of all entries at once, error rate 1e-6 for each layer."""
    spec, x, output_grad = layer(name)
    expected = exact(x, output_grad, spec)
    draws = torch.stack([estimate(estimator, x, output_grad, spec, seed) for seed in range(400)])
    assert_unbiased(draws, expected)
    assert float((draws - expected).norm()) > 0.01 * float(expected.norm())


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("estimator", SAMPLERS, ids=str)
def test_no_way_to_an_estimate_changes_it(name: str, estimator: Spatial) -> None:
    """Orders of memory, pieces, fused kernels in either half, single positions and a restored input give the same."""
    spec, x, output_grad = layer(name)
    found = estimate(estimator, x, output_grad, spec, 5)
    inputs, grads = (
        (t, t.movedim(1, -1).contiguous().movedim(-1, 1), t.transpose(0, 1).contiguous().transpose(0, 1))
        for t in (x, output_grad)
    )
    for some_x, some_grad in product(inputs, grads):
        torch.testing.assert_close(estimate(estimator, some_x, some_grad, spec, 5), found)
    small = replace(machine.cpu, row_piece=1, row_gathered=1, row_weighted=1, row_width=1, row_narrow=0)
    with patch.object(kept_positions, "PIECE", 1), patch.object(machine, "cpu", small):
        torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 5), found)
    backends: list[Any] = ["reference", "numba"] if is_installed("numba") else ["reference"]
    for before, after in product(backends, repeat=2):
        with kernels.use(before):
            held = estimator.sketch(x, spec, Draw(5))
        with kernels.use(after):
            torch.testing.assert_close(estimator.weight_vjp(held, output_grad, spec, Draw(5)), found)


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("name", LAYERS)
def test_an_estimate_is_the_vjp_of_what_was_kept(name: str) -> None:
    """Class by class and segment by segment, against PyTorch's kernel on the kept entries and zeros elsewhere."""
    spec, x, output_grad = layer(name)
    estimator = Spatial(0.4, center=False)
    plan, held = spatial.class_plan(estimator, spec, "input"), estimator.sketch(x, spec, Draw(5))[0]
    flat = plan.flat(plan.drawn(Draw(5), x.device)).positions.unsqueeze(1).expand_as(held)
    weights = torch.cat([torch.full((part.count,), part.weight) for part in plan.parts]).double()
    restored = x.new_zeros(*x.shape[:2], plan.used.size).scatter(2, flat, held * weights)
    expected = exact(plan.used.put_back(restored), output_grad, spec)
    torch.testing.assert_close(estimate(estimator, x, output_grad, spec, 5), expected)
    assert held.numel() <= 0.4 * x.numel()
    torch.testing.assert_close(held, plan.used.take(x).flatten(2).gather(2, flat))


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("name", ["1x1", "3x3"])
def test_the_variance_is_that_of_segments(name: str) -> None:
    """The formula of `describe` for one example, within 5 % (4000 draws; its own scatter is below 1 %)."""
    full, all_x, all_grads = layer(name)
    spec, x, output_grad = replace_batch(full, 1), all_x[:1], all_grads[:1]
    estimator = Spatial(0.4, center=False)
    (part,) = spatial.class_plan(estimator, spec, "input").parts
    assert part.length > 1
    each = []
    for start in range(0, math.prod(spec.input_size), part.length):
        only = torch.zeros_like(x).flatten(2)
        only[..., start : start + part.length] = x.flatten(2)[..., start : start + part.length]
        each.append(exact(only.view_as(x), output_grad, spec))
    parts = torch.stack(each)
    squares = float((parts - parts.mean(0)).square().sum())
    stated = (part.weight - 1) * len(each) / (len(each) - 1) * squares
    draws = torch.stack([estimate(estimator, x, output_grad, spec, seed) for seed in range(4000)])
    assert math.isclose(float((draws - parts.sum(0)).square().sum()) / 4000, stated, rel_tol=0.05)


def test_segments_lose_little_and_fit_their_rows() -> None:
    for width, count in product((7, 14, 16, 28, 33, 56), (20, 55, 98, 200)):
        spec = tn.ConvSpec((2, 64, 28, width), 64, 3, padding=1)
        length = positions.segment_length(spec, tn.position_classes(spec, "input")[0], count)
        assert length == 1 or (width % length == 0 and count // length >= 2 and count % length <= count / 10)
    sequence = tn.linear_spec((4, 64, 8), 5)  # whose channels lie side by side in memory
    assert positions.segment_length(sequence, tn.position_classes(sequence, "input")[0], 32) == 1


def test_runs_can_be_left_out() -> None:
    spec = tn.ConvSpec((2, 8, 8, 32), 4, 3, padding=1)
    lengths = [spatial.class_plan(Spatial(0.5, runs=runs), spec, "input").parts[0].length for runs in (True, False)]
    assert lengths == [8, 1]


def test_classes_have_segments_all_or_none() -> None:
    """Here rows of 14 and of 13, of which only the former can be divided."""
    spec = tn.ConvSpec((8, 64, 27, 28), 64, 3, padding=1, stride=2)
    for keep in (0.1, 0.2, 0.3, 0.5):
        lengths = [part.length for part in spatial.class_plan(Spatial(keep), spec, "input").parts]
        assert min(lengths) > 1 or max(lengths) == 1


@pytest.mark.usefixtures("rank")
def test_tensors_without_data_leave_nothing_behind() -> None:
    """Tables are kept from one call to the next, but no fake tensor among them."""
    spec, estimator = tn.ConvSpec((5, 8, 48), 4, 3, padding=1), Spatial(0.5)
    x, output_grad = torch.ones(spec.input_shape), torch.ones(spec.output_shape)
    estimate(estimator, x, output_grad, spec, 0)  # plans are made with data
    kept_positions._met.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = estimate(estimator, torch.empty(spec.input_shape), torch.empty(spec.output_shape), spec, 0)
    assert isinstance(fake, FakeTensor)
    assert type(estimate(estimator, x, output_grad, spec, 0)) is Tensor


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("name", ["3x3", "1x1", "3x3, stride 2", "few channels"])
def test_samples_can_be_rounded(name: str) -> None:
    spec, x, output_grad = layer(name)
    draws = torch.stack([estimate(Rounding(8, Spatial(0.5)), x, output_grad, spec, seed) for seed in range(200)])
    assert_unbiased(draws, exact(x, output_grad, spec))


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_held_is_what_is_described(name: str, keep: float) -> None:
    spec, x, _ = layer(name)
    for estimator in (Spatial(keep), Spatial(keep, per_example=False)):
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in estimator.sketch(x, spec, Draw(0))
        }
        assert (
            sum(held.values()) == estimator.describe(spec, x.dtype).held_bytes <= max(keep * x.nbytes, 8 * x.shape[1])
        )


def test_means_of_classes_count_by_their_sizes() -> None:
    """What is constant over each class of positions has the mean that is held, whichever positions are drawn."""
    x = torch.zeros(2, 8, 9, 9, dtype=torch.float64)
    x[..., ::2, ::2] = 1
    spec = Case(2, 1, 8, 4, (9, 9), (3, 3), 2, 1, 1, False, 0).spec()
    for seed in range(5):
        torch.testing.assert_close(Spatial(0.5).sketch(x, spec, Draw(seed))[1], x.mean((2, 3)))
