"""Levels in geometric progression: unbiased, with errors that are small beside each entry."""

import pytest
import torch
from torch import Tensor

from randbp.codecs import Geometric, Stream


def noise(seed: int = 0) -> Stream:
    return Stream(seed, torch.device("cpu"))


def again(kind: Geometric, values: Tensor, seed: int = 0) -> Tensor:
    held = kind.encode(values, noise(seed))
    assert held.dtype == torch.uint8 and held.nbytes == kind.nbytes(len(values))
    return kind.decode(held, len(values))


UNIFORM = torch.rand(700, generator=torch.Generator().manual_seed(0))
VALUES = {
    "roots": 0.5 / UNIFORM.sqrt(),
    "reciprocals": -1 / UNIFORM**2,
    "two kinds": torch.where(UNIFORM < 0.5, 1e12, 1 / UNIFORM),
    "both signs": torch.randn(700, generator=torch.Generator().manual_seed(1)),
    "quotients": torch.randn(700, generator=torch.Generator().manual_seed(1)) / UNIFORM,
    "with zeros": torch.where(UNIFORM < 0.5, 0, UNIFORM),
}


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("name", VALUES)
def test_its_mean_is_what_was_held(name: str, bits: int) -> None:
    values, draws = VALUES[name], 200
    runs = torch.stack([again(Geometric(bits), values, seed) for seed in range(draws)]).double()
    errors = (runs - values) / values.abs().max()  # noise has 16 bits, so shares of less are lost
    z = errors.mean(0).mean().abs() / ((errors.var(0).sum() / draws).sqrt() / len(values) + 1e-5)
    assert z < 4.5
    variance = errors.var(0)
    often = variance > 0.04 * errors.abs().amax(0).square()  # others jump too rarely for a normal law
    assert (errors.mean(0).abs() / ((variance / draws).sqrt() + 1e-5))[often].le(5.5).all()


@pytest.mark.parametrize(("bits", "bound"), [(5, 0.3), (8, 0.04)])
@pytest.mark.parametrize("name", VALUES)
def test_errors_are_small_beside_their_entries(name: str, bits: int, bound: float) -> None:
    values = VALUES[name]
    errors = torch.stack([again(Geometric(bits), values, seed) for seed in range(30)]) - values
    present = values != 0
    relative = (errors[:, present] / values[present]).double()
    assert torch.equal(errors[:, ~present], torch.zeros_like(errors[:, ~present]))
    assert relative.square().mean(0).sqrt().median() < bound


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("count", [1, 7, 256, 300])
def test_what_is_not_finite_stays_where_it_is(bits: int, count: int) -> None:
    values = torch.linspace(-2, 5, count)
    for wrong in (torch.inf, -torch.inf, torch.nan):
        for where in (slice(0, 1), slice(None, None, 3), slice(None)):
            spoilt = values.clone()
            spoilt[where] = wrong
            assert torch.equal(again(Geometric(bits), spoilt).isfinite(), spoilt.isfinite())


def test_equal_entries_are_exact() -> None:
    for value in (3.0, -7.5, 0.0, 1e-30):
        assert torch.equal(again(Geometric(5), torch.full((300,), value)), torch.full((300,), value))
