"""Rates by one multiplier beside a search through all of them."""

from itertools import product
from math import log

import pytest
import torch

from randbp.tune.rate_allocation import RATES, allocate


def terms(seed: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(3, 2, generator=generator).mul(6).exp().tolist()
    costs = {name: [cost * min(1, rate + 0.1) for rate in RATES] for name, (cost, _) in zip("abc", scales, strict=True)}
    variances = {name: [size * (1 / rate - 1) for rate in RATES] for name, (_, size) in zip("abc", scales, strict=True)}
    return costs, variances


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_no_other_rates_are_cheaper_at_the_same_variance(seed: int, share: float) -> None:
    costs, variances = terms(seed)
    target = share * sum(max(each) for each in variances.values())
    chosen = allocate(costs, variances, target)
    cost = sum(costs[name][at] for name, at in chosen.items())
    variance = sum(variances[name][at] for name, at in chosen.items())
    everything = [
        (
            sum(costs[n][at] for n, at in zip("abc", each, strict=True)),
            sum(variances[n][at] for n, at in zip("abc", each, strict=True)),
        )
        for each in product(range(len(RATES)), repeat=3)
    ]
    best = min(c for c, v in everything if v <= variance * (1 + 1e-9))
    assert cost <= best * 1.03
    assert abs(log(variance / target)) < 1  # three terms, and no useful rate between 14/16 and 1


def test_all_is_exact_without_a_budget_and_nothing_with_a_large_one() -> None:
    costs, variances = terms(0)
    assert set(allocate(costs, variances, 0.0).values()) == {15}
    assert set(allocate(costs, variances, 1e9).values()) == {0}


def test_a_rate_that_costs_more_than_exact_is_never_chosen() -> None:
    costs, variances = {"a": [0.5, 1.1, 1.0]}, {"a": [3.0, 1.0, 0.0]}
    assert {allocate(costs, variances, target)["a"] for target in (0.5, 1.0, 2.0, 4.0)} <= {0, 2}
