"""Positions that an output uses, how they are drawn, and pieces of a batch that are worked on one by one."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp import Axes, Spatial
from randbp.estimators import Draw, rebuilt
from randbp.estimators.positions import used_positions, windows
from tests.cases import Case, cases, transposed_cases
from tests.tn.strategies import another_machine


@given(case=st.one_of(cases(largest=8), transposed_cases()))
def test_every_position_that_an_output_uses_is_named_once(case: Case) -> None:
    x, weight, _ = case.tensors()
    spec = case.spec()
    grad = torch.autograd.grad(case.native(x, weight, None).sum(), x)[0]  # all kernel entries are positive
    used = used_positions(spec, x.device).tolist()
    met = set(grad[0].sum(0).flatten().nonzero().flatten().tolist())
    assert len(set(used)) == len(used) and met <= set(used)
    if max(p.dilation for p in spec.patterns) == max(p.stride for p in spec.patterns) == 1 and type(case) is Case:
        assert set(used) == met


@given(size=st.integers(1, 40), share=st.floats(0, 1), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_examples_keep_disjoint_stretches_in_turn(size: int, share: float, batch: int, seed: int) -> None:
    count = max(1, round(share * size))
    kept = windows(Draw(seed), size, count, batch, torch.device("cpu")).positions
    assert kept.shape == (batch, count) and bool((kept.diff(dim=1) > 0).all())
    assert int(kept.min()) >= 0 and int(kept.max()) < size
    different = min(batch, size // min(count, size - count) if count < size else 1)
    times = kept[:different].flatten().bincount(minlength=size)
    assert int(times.max() - times.min()) <= 1  # any two stretches, of those kept or those left out, are disjoint


def test_positions_are_equally_likely_for_each_example() -> None:
    """Each of 7 positions is kept by 4 in 7 draws: 5 examples, 4000 draws, error rate below 1e-6 for all together."""
    draws = torch.stack([windows(Draw(seed), 7, 4, 5, torch.device("cpu")).positions for seed in range(4000)])
    rates = torch.nn.functional.one_hot(draws, 7).sum(2).double().mean(0)
    assert bool(((rates - 4 / 7).abs() < 5.5 * (4 / 7 * 3 / 7 / 4000) ** 0.5).all())


@given(case=st.one_of(cases(largest=8), transposed_cases()), seed=st.integers(0, 99))
def test_pieces_do_not_change_a_result(case: Case, seed: int) -> None:
    x, weight, _ = case.tensors()
    grad, spec, draw = case.native(x, weight, None).detach(), case.spec(), Draw(seed)

    def both() -> list[torch.Tensor]:
        estimators = Spatial(0.5), Axes(0.5)
        return [e.weight_vjp(e.sketch(x.detach(), spec, draw), grad, spec, draw) for e in estimators]

    with patch.object(rebuilt, "NARROW", 0):
        whole = both()
        with another_machine(row_piece=1, row_gathered=1, row_weighted=1, row_width=1, row_narrow=0):
            for part, all_at_once in zip(both(), whole, strict=True):
                torch.testing.assert_close(part, all_at_once)


@given(
    case=st.one_of(cases(largest=8), transposed_cases()), keep=st.sampled_from([0.01, 0.3, 0.7]), centred=st.booleans()
)
def test_rebuilt_and_gathered_positions_give_the_same(case: Case, keep: float, centred: bool) -> None:
    x, weight, _ = case.tensors()
    grad, spec, draw = case.native(x, weight, None).detach(), case.spec(), Draw(5)
    for estimator in (Spatial(keep, center=centred), Spatial(keep, per_example=False, center=centred)):

        def run(estimator: Spatial = estimator) -> torch.Tensor:
            return estimator.weight_vjp(estimator.sketch(x.detach(), spec, draw), grad, spec, draw)

        with patch.object(rebuilt, "NARROW", 0):
            gathered = run()
        with patch.multiple(rebuilt, NARROW=1 << 20, SMALL_KERNEL=1 << 20):
            torch.testing.assert_close(run(), gathered)
        with patch.multiple(rebuilt, SMALL_KERNEL=0, MANY=0, LARGE=0):  # depthwise ones channel by channel
            torch.testing.assert_close(run(), gathered)


@pytest.mark.parametrize(
    ("size", "kernel", "geometry"),
    [
        ((17, 14), (3, 3), {"stride": 2, "padding": 1}),
        ((16, 18), (2, 2), {"stride": 2}),  # no margins
        ((13, 20), (5, 3), {"stride": (3, 2), "padding": (2, 0)}),
        ((15, 16), (3, 3), {"stride": 2, "dilation": 3, "padding": 3}),
        ((40,), (4,), {"stride": 3, "padding": 2}),
        ((9, 8, 10), (3, 3, 3), {"stride": 2, "padding": 1}),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_classes_of_positions_share_one_output_gradient(
    size: tuple[int, ...], kernel: tuple[int, ...], geometry: dict[str, Any], channels_last: bool
) -> None:
    """Strided layers large enough to have several classes, against the exact kernel on what is kept."""
    case = Case(
        3, 2, 4, 3, size, kernel, seed=1, **({"stride": 1, "padding": 0, "dilation": 1, "bias": False} | geometry)
    )
    x, weight, _ = case.tensors()
    grad, spec = case.native(x, weight, None).detach(), case.spec()
    if channels_last:
        grad = grad.movedim(1, -1).contiguous().movedim(-1, 1)
    for estimator in (Spatial(0.5), Spatial(0.3, per_example=False, center=False)):
        found = []
        for narrow in (0, 1 << 20):
            with patch.multiple(rebuilt, NARROW=narrow, SMALL_KERNEL=1 << 20):
                held = estimator.sketch(x.detach(), spec, Draw(5))
                found.append(estimator.weight_vjp(held, grad, spec, Draw(5)))
        torch.testing.assert_close(*found)
