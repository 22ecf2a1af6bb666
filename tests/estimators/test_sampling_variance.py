"""Variances by running sums beside plain counts, and beside estimates that are drawn."""

import pytest
import torch
from torch import Tensor

from randbp.estimators.base import kept
from randbp.estimators.sampling_variance import sampling_variances
from randbp.kernels import systematic_rows

RATES = [0.05, 0.25, 0.5, 0.75, 0.95, 1.0]


def sizes(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(64, generator=generator).pow(6)
    if kind == "zeros":
        spread[::3] = 0
    if kind == "one":
        spread[5] = 1e4
    return {"ties": torch.ones(64), "nothing": torch.zeros(64)}.get(kind, spread)


def by_bisection(sizes: Tensor, rate: float) -> list[float]:
    """Probabilities ``min(1, λ (s + s̄/10))`` that sum to the count."""
    some = [float(size) for size in sizes.double() if size > 0]
    mean = sum(some) / max(1, len(some))
    raised = [float(size) + mean / 10 if size > 0 else 0.0 for size in sizes.double()]
    count = kept(len(raised), rate)
    if count >= len(some):
        return [float(size > 0) for size in raised]
    low, high = 0.0, 1e12
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(min(1.0, middle * size) for size in raised) < count else (low, middle)
    return [min(1.0, high * size) for size in raised]


@pytest.mark.parametrize("kind", ["spread", "zeros", "one", "ties", "nothing"])
def test_variances_are_those_of_a_plain_count(kind: str) -> None:
    given = sizes(kind)
    squares = torch.stack([given.square(), torch.linspace(0, 1, 64)])
    found = sampling_variances(given, squares, RATES)
    for column, rate in enumerate(RATES):
        chances = by_bisection(given, rate)
        for row in range(2):
            terms = [(1 / p - 1) * float(q) for p, q in zip(chances, squares[row], strict=True) if p > 0]
            assert found[row, column].item() == pytest.approx(sum(terms), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["spread", "zeros", "one"])
def test_variances_are_those_of_the_weights_with_which_rows_are_drawn(kind: str) -> None:
    given = sizes(kind)
    found = sampling_variances(given, given.square()[None], [0.25])[0, 0].item()
    weights = {}
    for start in range(0, 2**32, 2**32 // 257):  # each row is met by some start
        rows, values = systematic_rows(given, 16, start)
        weights |= {int(row): float(value) for row, value in zip(rows, values, strict=True) if value > 0}
    assert len(weights) == int((given > 0).sum())
    total = sum((weight - 1) * float(given[row]) ** 2 for row, weight in weights.items())
    assert found == pytest.approx(total, rel=1e-4)
