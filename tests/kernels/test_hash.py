"""Each stage of the hash behind the noise does what it is there for: statistics that see the loss of any of them.

The hash is written down again, stage by stage, so that it can be had without one.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from randbp.kernels import noise

ERROR = 5e-4
"""Probability that a good hash is refused, in all tests of this file together (Bonferroni)."""

SAMPLES = 4096
GAMMA = 0x9E3779B97F4A7C15

Words = NDArray[Any]


class Hash(NamedTuple):
    """What makes noise of seeds and counters: start of a seed, two keys of each block, words of keys."""

    start: Callable[[Words], Words]
    keys: Callable[[int, Tensor], Tensor]
    words: Callable[[Tensor, int], Tensor]


REAL = Hash(
    lambda seeds: np.array([noise.start(int(seed)) for seed in seeds.ravel()], np.uint64).reshape(seeds.shape),
    noise.keys,
    noise.words,
)

MIX = (("shift", 30), ("times", 0xBF58476D1CE4E5B9), ("shift", 27), ("times", 0x94D049BB133111EB), ("shift", 31))
WORD = (
    *(("low key", 0), ("shift", 16), ("times", 0x21F0AAAD), ("shift", 15)),
    *(("high key", 0), ("times", 0x735A2D97), ("shift", 15)),
)
"""Stages: ``x ^= x >> s``, ``x *= m``, ``x += key``."""

STAGES = [*(("start", n) for n in range(5)), *(("keys", n) for n in range(5)), *(("words", n) for n in range(7))]


def without(part: str, stage: int) -> Hash:
    """The hash less one stage of a part of it; ``-1`` for none."""
    some = {name: stage if name == part else -1 for name in ("start", "keys", "words")}

    def start(seeds: Words) -> Words:
        return _mix(seeds + np.uint64(GAMMA), some["start"])

    def keys(seed: int, blocks: Tensor) -> Tensor:
        counters = (blocks.numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
        z = _mix(start(np.array([seed % 2**64], np.uint64)) + counters, some["keys"])
        return torch.from_numpy(z[..., None].view(np.int32))

    def words(keys: Tensor, count: int) -> Tensor:
        low, high = np.split(keys.contiguous().numpy().view(np.uint32), 2, -1)
        x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.zeros_like(low)
        return torch.from_numpy(_run(WORD, x, some["words"], {"low key": low, "high key": high}).view(np.int32))

    return Hash(start, keys, words)


def _mix(z: Words, leave_out: int) -> Words:
    return _run(MIX, z, leave_out, {})


def _run(stages: tuple[tuple[str, int], ...], x: Words, leave_out: int, keys: dict[str, Words]) -> Words:
    for number, (what, value) in enumerate(stages):
        if number == leave_out:
            continue
        if what == "shift":
            x = x ^ (x >> x.dtype.type(value))
        else:
            x = x * x.dtype.type(value) if what == "times" else x + keys[what]
    return x


def scores(tried: Hash) -> Iterator[tuple[str, list[float]]]:
    """Statistics of a hash that are standard normal if it is good, or 0 and infinite for what never happens then."""
    generator = np.random.default_rng(7)
    some = generator.integers(0, 2**64, SAMPLES, np.uint64)

    def keys(blocks: Words) -> Words:
        made: Words = tried.keys(3, torch.from_numpy(blocks.view(np.int64))).numpy().view(np.uint64)[..., 0]
        return made

    def words(number: int, keys: Words) -> Words:
        made: Words = tried.words(torch.from_numpy(keys.view(np.int32).reshape(*keys.shape, 2)), number + 1).numpy()
        return made.view(np.uint32)[..., number]

    for name, function, inputs, bits in (
        ("seed, start", tried.start, some[: SAMPLES // 4], range(64)),
        ("block, keys", keys, some, range(64)),
        ("low key, word 0", partial(words, 0), some, range(32)),
        ("low key, word 5", partial(words, 5), some, range(32)),
    ):
        for bit in bits:
            flipped = function(inputs) ^ function(inputs ^ np.uint64(1 << bit))
            yield f"{name}: bit {bit} flips others", _flips(flipped)
    # What the last multiplication brings up, the last shift brings down to the low half, whatever the other bits are.
    for bit in range(15, 32):
        flipped = words(0, some) ^ words(0, some ^ np.uint64(1 << (32 + bit)))
        always = bool((flipped >> np.uint32(bit - 15) & np.uint32(1)).all())
        yield f"bit {bit} of the high key flips bit {bit - 15}", [0.0 if always else math.inf]
    # Of 2^20 blocks, two would begin with the same two words once in 2^25 times; 128 do if one key has no effect.
    pairs = tried.words(tried.keys(11, torch.arange(2**20)), 2).contiguous().view(torch.int64)
    yield "blocks that begin alike", [0.0 if len(pairs.unique()) == len(pairs) else math.inf]


def _flips(flipped: Words) -> list[float]:
    """Of each bit, how far it is from being set in half of the numbers."""
    bits = np.unpackbits(flipped[:, None].view(np.uint8), axis=1)
    return [(2 * int(count) - len(flipped)) / math.sqrt(len(flipped)) for count in bits.sum(0, dtype=np.int64)]


def refused(tried: Hash) -> list[str]:
    """The statistics that are too far from 0."""
    every = dict(scores(tried))
    count = sum(map(len, every.values()))
    return [name for name, some in every.items() if math.erfc(max(map(abs, some)) / math.sqrt(2)) < ERROR / count]


def test_all_bits_depend_on_all_bits() -> None:
    assert refused(REAL) == []


def test_the_hash_written_down_again_is_the_same() -> None:
    again, blocks = without("nothing", -1), torch.randint(0, 2**62, (100,), generator=torch.Generator().manual_seed(0))
    for seed in (0, -5, 2**63 + 9, 12345):
        assert int(again.start(np.array([seed % 2**64], np.uint64))[0]) == noise.start(seed)
        assert torch.equal(again.keys(seed, blocks), noise.keys(seed, blocks))
        assert torch.equal(again.words(noise.keys(seed, blocks), 130), noise.words(noise.keys(seed, blocks), 130))


@pytest.mark.parametrize(("part", "stage"), STAGES)
def test_the_loss_of_any_stage_is_seen(part: str, stage: int) -> None:
    assert refused(without(part, stage))
