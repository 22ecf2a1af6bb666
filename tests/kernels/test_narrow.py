"""Stochastic rounding to 16 bits: the same bits from all versions, unbiased, within a step, and NaN stays NaN."""

import math

import pytest
import torch
from torch import Tensor

from randbp.kernels import narrow, use
from randbp.kernels.operator import is_installed

TYPES = [torch.bfloat16, torch.float16]
SPECIAL = torch.cat(
    [
        torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 65504.0, 65520.0, -7e4, 1e-40]),
        torch.tensor([2.0**-14, 0.999 * 2.0**-14, 2.0**-24, 2.0**-25, 1e-9, 6e-8]),
        torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 1], dtype=torch.int32).view(torch.float32),
    ]
)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16)


def neighbours(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of a type next to ``x`` on both sides, or ``x`` twice, in double precision; by PyTorch's rounding."""
    nearest = x.to(dtype)
    step = torch.where(nearest.double() > x.double(), -torch.inf, torch.inf).to(dtype)
    other = torch.where(nearest.double() == x.double(), nearest, torch.nextafter(nearest, step)).double()
    return torch.minimum(nearest.double(), other), torch.maximum(nearest.double(), other)


@pytest.mark.skipif(not is_installed("numba"), reason="needs numba")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 511, 100_003])
def test_numba_and_the_reference_give_the_same_bits(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for scale in (1.0, 1e-5, 3e-8, 1e4, 1e38):
        x = torch.cat([torch.randn(count, generator=generator) * scale, SPECIAL])
        with use("reference"):
            expected = narrow(x, 5, count, dtype)
        with use("numba"):
            assert torch.equal(bits(narrow(x, 5, count, dtype)), bits(expected))


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_unbiased_and_goes_no_further_than_the_next_number(dtype: torch.dtype) -> None:
    """z-test of the share that is rounded up, for 40 numbers; error probability 2e-6 in all (Bonferroni)."""
    generator = torch.Generator().manual_seed(0)
    largest = 6e4 if dtype == torch.float16 else 1e30
    some = torch.randn(40, generator=generator) * torch.logspace(-9, math.log10(largest) - 1, 40)
    draws = 50_000
    found = narrow(some.repeat(draws), 3, 0, dtype).view(draws, -1).double()
    below, above = neighbours(some, dtype)
    assert ((found == below) | (found == above)).all()
    wanted = (some.double() - below) / (above - below)
    share = (found == above).double().mean(0)
    z = (share - wanted).abs() / (wanted * (1 - wanted) / draws).sqrt()
    common = torch.minimum(wanted, 1 - wanted) * draws > 20  # else the count is Poisson, not normal
    assert common.sum() > 30
    assert z[common].max() < 5.5  # 40 normal numbers exceed it with probability 1.5e-6


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_of_the_type_stay_and_so_does_what_is_not_finite(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    found = narrow(every.float(), 0, 0, dtype)
    number = ~every.isnan()
    assert torch.equal(bits(found[number]), bits(every[number]))
    assert found[~number].isnan().all()
    assert narrow(SPECIAL, 0, 0, dtype)[SPECIAL.isnan()].isnan().all()


def test_above_the_largest_number() -> None:
    x = torch.tensor([65510.0, 7e4, -1e38]).repeat(200)
    found = narrow(x, 0, 0, torch.float16).view(200, 3)
    assert set(found[:, 0].tolist()) == {65504.0, math.inf}
    assert (found[:, 1] == torch.inf).all() and (found[:, 2] == -torch.inf).all()


def test_neighbouring_entries_and_seeds_are_rounded_independently() -> None:
    """Correlations of 2^18 pairs have a standard error of 2^-9; six of them are exceeded with probability 2e-9 each."""
    x = torch.full((2**18,), 1.0 + 2.0**-8)
    up = narrow(x, 1, 0, torch.bfloat16).double() - 1 - 2.0**-8
    up /= up.std()
    others = [up.roll(distance) for distance in (1, 2, 127, 128, 129, 256)]
    again = narrow(x, 2, 0, torch.bfloat16).double() - 1 - 2.0**-8
    for other in [*others, again / again.std()]:
        assert abs((up * other).mean()) < 6 / 2**9


def test_a_part_can_be_rounded_alone() -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    whole = narrow(x, 1, 0, torch.bfloat16)
    assert torch.equal(narrow(x[512:], 1, 2, torch.bfloat16), whole[512:])
