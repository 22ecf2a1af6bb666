"""Draws that follow norms: inclusion probabilities, and what they gain."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp import BiasedTopK, Channels, Estimator, Exact, LowResolution, NormChannels, NormSpatial, Spatial
from randbp.estimators import Draw, by_norm
from randbp.estimators.inclusion import inclusion_probabilities, systematic, weighted_draw
from randbp.functional import conv_spec


@given(seed=st.integers(0, 999), rows=st.integers(1, 3), size=st.integers(1, 12), data=st.data())
def test_probabilities_are_proportional_below_one(seed: int, rows: int, size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    norms = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed)) + 0.05
    probabilities = inclusion_probabilities(norms, count)
    torch.testing.assert_close(probabilities.sum(1), torch.full((rows,), float(count), dtype=torch.float64))
    assert (probabilities <= 1 + 1e-9).all()
    ratio = probabilities / norms
    for row in range(rows):
        below = probabilities[row] < 1 - 1e-9
        torch.testing.assert_close(ratio[row, below], ratio[row, below].mean().expand(int(below.sum())))
        if below.any():  # what is kept surely would have had more than 1
            assert (ratio[row, ~below] <= ratio[row, below].mean() * (1 + 1e-9)).all()


@given(seed=st.integers(0, 999), size=st.integers(1, 12), data=st.data())
def test_systematic_draws_include_as_often_as_stated(seed: int, size: int, data: st.DataObject) -> None:
    """Over a fine grid of starts the share of draws with an entry is its probability up to the grid's width."""
    count = data.draw(st.integers(1, size))
    norms = torch.rand(1, size, generator=torch.Generator().manual_seed(seed)) + 0.05
    probabilities = inclusion_probabilities(norms, count).expand(1000, -1).contiguous()
    starts = ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).unsqueeze(1)
    drawn = systematic(probabilities, count, starts)
    assert all(len(set(row)) == count for row in drawn.tolist())
    share = torch.zeros(size, dtype=torch.float64).index_add_(
        0, drawn.flatten(), torch.full((drawn.numel(),), 1e-3).double()
    )
    assert (share - probabilities[0]).abs().max() < 2.1e-3


@pytest.mark.parametrize("top", [0.0, 0.5])
def test_zero_norms_are_drawn_evenly(top: float) -> None:
    index, weights = weighted_draw(torch.zeros(2, 8), 4, top, torch.full((2, 1), 0.5))
    assert all(len(set(row)) == 4 for row in index.tolist()) and weights.isfinite().all()


def layer(
    seed: int = 0, spread: float = 2.0, size: int = 12
) -> tuple[torch.Tensor, torch.Tensor, object, torch.Tensor]:
    """Input whose positions and channels differ much in size, as in a network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 8, size, size, generator=generator)
    x = x * (torch.randn(8, 1, size, size, generator=generator) * spread).exp()
    x = x * torch.randn(1, 8, 1, 1, generator=generator).exp()
    spec = conv_spec(x, torch.empty(8, 8, 3, 3), 1, 1, 1, 1)
    output_grad = torch.randn(spec.output_shape, generator=generator)
    return x, output_grad, spec, Exact().weight_vjp((x,), output_grad, spec, Draw(0))


def error(estimator: Estimator, x, output_grad, spec, exact) -> float:  # type: ignore[no-untyped-def]
    draws = [estimator.weight_vjp(estimator.sketch(x, spec, Draw(s)), output_grad, spec, Draw(s)) for s in range(40)]
    return sum(float((d - exact).norm() / exact.norm()) for d in draws) / 40


def test_norms_gain_where_sizes_differ() -> None:
    sample = layer()
    assert error(NormSpatial(0.25), *sample) < 0.5 * error(Spatial(0.25), *sample)
    assert error(NormChannels(0.25), *sample) < 0.8 * error(Channels(0.25), *sample)


def test_block_means_gain_where_the_input_is_smooth() -> None:
    x, _, spec, _ = layer(spread=0)
    smooth = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    output_grad = torch.rand(8, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    exact = Exact().weight_vjp((smooth,), output_grad, spec, Draw(0))
    sample = smooth, output_grad, spec, exact
    assert error(LowResolution(0.5, block=2), *sample) < 0.9 * error(Spatial(0.5), *sample)


@pytest.mark.parametrize("size", [12, 66])  # 66: more pairs than integers of two bytes number
def test_a_sparse_input_that_fits_the_budget_is_nearly_exact(size: int) -> None:
    x, output_grad, spec, _ = layer(spread=0, size=size)
    x[:, :, : -size // 6] = 0  # a sixth of the positions is left, the last ones
    exact = Exact().weight_vjp((x,), output_grad, spec, Draw(0))
    assert error(NormSpatial(0.5, center=False), x, output_grad, spec, exact) < 1e-5
    assert error(BiasedTopK(0.5), x, output_grad, spec, exact) < 1e-5


def test_top_k_keeps_the_largest_and_is_biased() -> None:
    sample = layer()
    x, _, spec, _ = sample
    columns, index = BiasedTopK(0.25).sketch(x, spec, Draw(0))
    norms = x.norm(dim=1).flatten()
    count = index.numel()
    assert set(index[0].tolist()) == set(norms.topk(count).indices.tolist())
    torch.testing.assert_close(columns[0].norm(dim=0).sort().values, norms.topk(count).values.sort().values)
    assert not BiasedTopK(0.25).unbiased


def test_top_k_warns_once() -> None:
    by_norm._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="BiasedTopK is biased"):
        BiasedTopK(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BiasedTopK(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormSpatial(0.5, top=1.0), r"NormSpatial: top=1.0, expected a number in \[0, 1\)"),
        (lambda: NormChannels(0.5, top=-1), r"NormChannels: top=-1.0, expected a number in \[0, 1\)"),
        (lambda: NormSpatial(0.5, center=1.5), r"NormSpatial: center=1.5, expected True, False or a cell size >= 2"),
        (lambda: LowResolution(0.5, block=1), r"LowResolution: block=1, expected an integer >= 2"),
    ],
)
def test_bad_arguments_are_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
