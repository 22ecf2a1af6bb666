"""Random numbers by counter are uniform and independent, as far as a million can tell, and can be made anywhere."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from randbp.kernels import decode, encode, use
from randbp.kernels.noise import BLOCK, keys, uniform, words
from randbp.kernels.operator import Backend

ERROR = 5e-4
"""Probability that good noise is refused, in all tests of this file together (Bonferroni)."""

SEEDS = (0, 1, 12345, -(2**63) + 7, 2**40)
Noise = Callable[[int, Tensor], Tensor]


def noise(seed: int, blocks: Tensor) -> Tensor:
    """Numbers ``j`` from 0 to ``2^16 - 1``, ``[blocks, 256]``."""
    return uniform(seed, blocks, BLOCK).mul_(2**16).to(torch.int64)


def without_keys(seed: int, blocks: Tensor) -> Tensor:
    """What must be refused: words that are multiples of one number instead of a hash."""
    counters = blocks.unsqueeze(1) * BLOCK + torch.arange(BLOCK) + seed % 2**16
    return (counters * 0x9E3779B9 >> 16) & 0xFFFF


def scores(noise: Noise) -> Iterator[tuple[str, float]]:
    """Statistics of a noise that are standard normal if its numbers are uniform and independent."""
    blocks = torch.arange(4096)
    for seed in SEEDS:
        x = noise(seed, blocks)
        u = (2 * x + 1).double() / 2**17 - 0.5
        yield f"mean, seed {seed}", _mean(u, 1 / 12)
        yield f"variance, seed {seed}", _mean(u.square() - 1 / 12, 1 / 180)
        yield f"all values, seed {seed}", _chi_square(x, 2**16)
        for lag in (1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 127, 129):
            yield f"entries {lag} apart, seed {seed}", _correlation(u[:, lag:], u[:, :-lag])
        yield f"halves of words, seed {seed}", _correlation(u[:, :128], u[:, 128:])
        for lag in (1, 2, 3, 4, 256, 1024):
            yield f"blocks {lag} apart, seed {seed}", _correlation(u[lag:], u[:-lag])
        for low, name in ((10, "high"), (5, "middle"), (0, "low")):
            part = (x >> low) & 63
            yield f"pairs of neighbours, {name} bits, seed {seed}", _chi_square(part[:, ::2] * 64 + part[:, 1::2], 4096)
            yield f"pairs of blocks, {name} bits, seed {seed}", _chi_square(part[::2] * 64 + part[1::2], 4096)
            yield f"pairs of halves, {name} bits, seed {seed}", _chi_square(part[:, :128] * 64 + part[:, 128:], 4096)
    some = blocks[:512]
    for other in (1, 2, 3, *(2**power for power in range(2, 64, 3)), 0x9E3779B97F4A7C15):
        a, b = noise(5, some), noise(5 + other, some)
        yield f"seeds 5 and 5 + {other}", _correlation(a / 2**16 - 0.5, b / 2**16 - 0.5)
        yield f"pairs of seeds 5 and 5 + {other}", _chi_square((a >> 11) * 32 + (b >> 11), 1024)


def _mean(x: Tensor, variance: float) -> float:
    return float(x.mean()) * math.sqrt(x.numel() / variance)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float((a * b).mean()) * 12 * math.sqrt(a.numel())


def _chi_square(cells: Tensor, count: int) -> float:
    expected = cells.numel() / count
    statistic = float((cells.flatten().bincount(minlength=count) - expected).square().sum()) / expected
    return (statistic - (count - 1)) / math.sqrt(2 * (count - 1))


def refused(noise: Noise) -> dict[str, float]:
    """The statistics that are too far from 0."""
    every = dict(scores(noise))
    return {name: z for name, z in every.items() if math.erfc(abs(z) / math.sqrt(2)) < ERROR / len(every)}


def test_uniform_and_independent() -> None:
    assert refused(noise) == {}


def test_what_is_no_noise_is_refused() -> None:
    assert len(refused(without_keys)) > 100


def test_any_word_can_be_made_alone() -> None:
    every = words(keys(9, torch.arange(6).view(2, 3)), 100)
    for number in range(6):
        assert torch.equal(words(keys(9, torch.tensor(number)), 37), every.view(6, 100)[number, :37])


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("entries", [100, 77])
def test_some_rows_are_encoded_and_decoded_as_with_all_the_others(backend: Backend, entries: int) -> None:
    x, blocks = torch.randn(7, entries, generator=torch.Generator().manual_seed(0)), -(-entries // 32)

    def rows(some: slice) -> tuple[Any, ...]:
        first = 1000 + some.start * blocks
        codes, scales = encode(x[some], 3, first, 4, 32, True)
        return codes, scales, decode(codes, scales, 3, first, 4, 32, entries, True, torch.float32)

    with use(backend):
        every, some = rows(slice(0, 7)), rows(slice(2, 5))
        alone = decode(every[0][2:5], every[1][2:5], 3, 1000 + 2 * blocks, 4, 32, entries, True, torch.float32)
    for whole, part in zip(every, some, strict=True):
        assert torch.equal(whole[2:5], part)
    assert torch.equal(alone, some[2])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dithered", [True, False])
def test_rounding_is_unbiased_and_of_the_variance_it_claims(bits: int, dithered: bool) -> None:
    """By z-tests of mean and variance over 4096 blocks, at an error rate of 1e-6 each."""
    x = torch.linspace(-1, 1, 256, dtype=torch.float64).repeat(4096, 1)
    codes, scales = encode(x, 11, 0, bits, 256, dithered)
    error = (decode(codes, scales, 11, 0, bits, 256, 256, dithered, torch.float64) - x) / scales[:, :, 1]
    f = (x[:1] + 1) / scales[0, 0, 1] % 1
    variance = torch.full_like(f, 1 / 12) if dithered else f * (1 - f)
    z = error.mean(0, keepdim=True) / (variance / 4096).sqrt().clamp_min(1e-6)
    assert z.abs().max() < 6.1  # Bonferroni over 256 entries
    expected = float(variance.mean())
    spread = error.square().mean(1)
    assert abs(float(spread.mean()) - expected) < 4.9 * float(spread.std()) / 64 + 1e-7
