"""From measurements to an assignment: against brute force, against the closed form, and where it must refuse."""

import random
from itertools import pairwise, product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from randbp import Exact, Spatial
from randbp.tune import Assignment, LayerOptions, Option, UnreachableBudget, assign
from randbp.tune.assignment import PAYS
from randbp.tune.knapsack import lower_hull

KEEP = Spatial(0.5)


def option(variance: float, cost: float) -> Option:
    return Option(KEEP, variance, round(cost), cost / 1000)


def layer(name: str, cost: float, *candidates: tuple[float, float]) -> LayerOptions:
    """Candidates: variance and cost."""
    return LayerOptions(
        name, 1.0, Option(Exact(), 0.0, round(cost), cost / 1000), tuple(option(*c) for c in candidates)
    )


def least_variance(layers: list[LayerOptions], budget: float) -> float:
    """By trying everything that pays."""
    allowed = budget * sum(it.exact.seconds for it in layers) * (1 + 1e-9)
    choices = [(it.exact, *(o for o in it.candidates if o.seconds <= PAYS * it.exact.seconds)) for it in layers]
    sums = ((sum(o.variance for o in c), sum(o.seconds for o in c)) for c in product(*choices))
    return min((variance for variance, seconds in sums if seconds <= allowed), default=inf)


def draw_layers(seed: int, count: int, candidates: int) -> list[LayerOptions]:
    rng = random.Random(seed)
    layers = []
    for number in range(count):
        cost, scale = rng.uniform(1e3, 1e4), rng.lognormvariate(0, 2)
        keeps = [rng.uniform(0.02, 1.1) for _ in range(candidates)]
        found = [(scale * abs(1 / p - 1) * rng.lognormvariate(0, 0.5), cost * p) for p in keeps]
        layers.append(layer(str(number), cost, *found))
    return layers


@given(st.integers(0, 10**6), st.sampled_from([(1, 6), (2, 6), (3, 6), (4, 4)]), st.floats(0.05, 1))
def test_keeps_the_budget_and_lies_between_the_bound_and_the_optimum(
    seed: int, size: tuple[int, int], budget: float
) -> None:
    layers = draw_layers(seed, *size)
    least = least_variance(layers, budget)
    try:
        found = assign(layers, budget, "time")
    except UnreachableBudget as error:
        assert least == inf
        assert str(error).startswith(f"budget={budget!r}: the candidates reach ")
        cheapest = error.cheapest.seconds / error.cheapest.exact_seconds
        error.cheapest.with_budget(min(1.0, cheapest * (1 + 1e-6)))
        return
    assert found.seconds <= budget * found.exact_seconds * (1 + 1e-8)
    assert found.lower_bound <= least * (1 + 1e-8) + 1e-12
    assert least <= found.variance * (1 + 1e-8) + 1e-12
    if size[0] <= 2:  # single changes and exchanges see every assignment
        assert found.variance <= least * (1 + 1e-8) + 1e-12


def test_is_nearly_always_the_optimum() -> None:
    """A fixed set of 60 cases: the optimum in at least 50 of them, never 15% above."""
    ratios = []
    for seed in range(60):
        layers = draw_layers(seed, 4, 5)
        least = least_variance(layers, 0.3)
        if 0 < least < inf:
            ratios.append(assign(layers, 0.3, "time").variance / least)
    assert len(ratios) > 50 and max(ratios) < 1.15
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) > 0.85 * len(ratios)


@given(st.integers(0, 10**6))
def test_is_the_optimum_where_steps_on_the_hull_end(seed: int) -> None:
    layers = draw_layers(seed, 3, 6)
    total = sum(it.exact.seconds for it in layers)
    hulls = [
        lower_hull(
            [(it.exact.seconds, 0.0, it.exact)]
            + [(o.seconds, o.variance, o) for o in it.candidates if o.seconds <= PAYS * it.exact.seconds]
        )
        for it in layers
    ]
    steps = sorted(
        ((b[1] - a[1]) / (a[0] - b[0]), a[0] - b[0], b[1] - a[1]) for hull in hulls for a, b in pairwise(hull)
    )
    seconds, variance = total, 0.0
    for _, saves, adds in steps:
        seconds, variance = seconds - saves, variance + adds
        found = assign(layers, seconds / total, "time")
        least = least_variance(layers, seconds / total)
        assert [found.variance, found.lower_bound, least] == pytest.approx([variance] * 3)


def test_follows_the_closed_form_on_a_fine_grid() -> None:
    """p_l ∝ √(v_l/c_l), clipped at 1, of 6 layers with variance v(1/p - 1) and cost c·p."""
    rng = random.Random(3)
    sizes = [(rng.lognormvariate(0, 4), rng.uniform(1e5, 1e6)) for _ in range(6)]
    grid = [0.97**k for k in range(1, 200)]
    layers = [layer(str(i), c, *((v * (1 / p - 1), c * p) for p in grid)) for i, (v, c) in enumerate(sizes)]
    budget = 0.4
    low, high = 0.0, 1e9
    for _ in range(200):  # the factor of proportionality
        factor = (low + high) / 2
        rates = [min(1.0, factor * (v / c) ** 0.5) for v, c in sizes]
        over = sum(p * c for p, (_, c) in zip(rates, sizes, strict=True)) > budget * sum(c for _, c in sizes)
        low, high = (low, factor) if over else (factor, high)
    found = assign(layers, budget, "time")
    assert 1 in rates and min(rates) < 0.1
    for rate, it, chosen in zip(rates, layers, found.chosen, strict=True):
        assert chosen.seconds / it.exact.seconds == pytest.approx(rate, rel=0.08)
    optimum = sum(v * (1 / p - 1) for p, (v, _) in zip(rates, sizes, strict=True))
    assert optimum * 0.999 < found.variance < optimum * 1.01


def test_a_layer_where_nothing_pays_stays_exact() -> None:
    layers = [layer("slow", 100, (0.1, 99), (0.1, 120)), layer("fast", 100, (1.0, 10))]
    found = assign(layers, 0.6, "time")
    assert {name: estimator.exact for name, estimator in found.items()} == {"slow": True, "fast": False}
    with pytest.raises(UnreachableBudget, match=r"budget=0\.5: the candidates reach 0\.55 of the exact layers' time"):
        assign(layers, 0.5, "time")


def test_all_exact_at_the_full_budget_or_without_candidates() -> None:
    assert all(estimator.exact for estimator in assign(draw_layers(0, 4, 5), 1.0).values())
    assert assign([layer("a", 10)], 1).variance == 0


def test_bytes_that_others_hold() -> None:
    candidates = (option(1.0, 10), option(9.0, 5))
    alone = LayerOptions("alone", 1.0, Option(Exact(), 0.0, 100, 1.0), candidates)
    shared = LayerOptions("shared", 1.0, Option(Exact(), 0.0, 100, 1.0), candidates, 100, ("relu",))
    counted = assign([alone, shared], 0.1)
    assert not counted["shared"].exact and counted.held_bytes == 20 and counted.freed_bytes == 80
    assert "the whole model frees 80 B" in str(counted) and "relu" in str(counted)
    freed = assign([alone, shared], 0.1, count_shared=False)
    assert freed["shared"].exact and freed["alone"] == KEEP and freed.freed_bytes == 90
    assert freed.with_budget(1.0).count_shared is False


@pytest.mark.parametrize("budget", [0, -1, 1.5, float("nan"), "a", True])
def test_budgets_out_of_range_are_named(budget: object) -> None:
    with pytest.raises(ValueError, match=r"budget=.*: expected a share of the exact layers' cost in \(0, 1\]"):
        assign(draw_layers(0, 2, 2), budget)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="objective='bytes': expected 'memory' or 'time'"):
        assign(draw_layers(0, 2, 2), 0.5, "bytes")  # type: ignore[arg-type]


def test_it_is_a_mapping_and_a_table() -> None:
    found = assign([layer("a.0", 2048, (1.0, 512)), layer("a.1", 2048, (0.25, 512))], 0.7)
    assert isinstance(found, Assignment) and dict(found) == found and list(found) == ["a.0", "a.1"]
    assert found["a.1"] == KEEP and "b" not in found and found.prefixed("net")["net.a.1"] == KEEP
    lines = str(found).splitlines()
    assert lines[2].split()[:3] == ["a.0", "exact", "2.0"] and lines[3].split()[:2] == ["a.1", "Spatial(keep=0.5)"]
    assert "0.625" in lines[5] and found.error == pytest.approx((0.25 / 2) ** 0.5)
    assert found.configuration()["a.1"] == {"class_path": "randbp.Spatial", "init_args": {"keep": 0.5}}
