"""One list of all ways to hold a tensor in few bits, and what holds for each of them."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from randbp import codecs
from randbp.codecs import Blocks, Codes, Flat, Geometric, Grid, Mask, Stream, Uniform

ERROR = 1e-6
"""Probability that one test of statistics refuses a good codec (of 29 of them, 3e-5)."""

DRAWS = 4000

BITS = (1, 2, 3, 4, 5, 8)
FLAT: list[Flat] = [
    *(Blocks(bits) for bits in BITS),
    *(Geometric(bits) for bits in BITS if bits > 1),
    *(Grid.over(-0.13, 1.13, bits) for bits in BITS),
    *(Codes(bits) for bits in BITS),
    Mask(),
]
EXACT = (Codes, Mask)
COUNTS = (0, 1, 7, 255, 256, 257, 1000, 2048, 4099)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def noise(seed: int = 0) -> Stream:
    return Stream(seed, torch.device("cpu"))


def values(codec: Flat, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What such a codec is for."""
    generator = torch.Generator().manual_seed(count)
    if isinstance(codec, Mask):
        return torch.rand(count, generator=generator) > 0.4
    if isinstance(codec, Codes):
        return torch.randint(0, 2**codec.bits, (count,), generator=generator, dtype=torch.uint8)
    x = torch.rand(count, generator=generator, dtype=torch.float64) * 1.26 - 0.13
    if isinstance(codec, Geometric):
        x = x.where(torch.arange(count) < 512, x.abs() + 0.01)  # signs of both kinds, then of one
    return x.to(dtype)


def some(codec: Flat, count: int, dtype: torch.dtype = torch.float32, spoilt: bool = False) -> Tensor:
    x = values(codec, count, dtype)
    if spoilt and x.is_floating_point():
        x[::700] = torch.nan
        x[300::700] = torch.inf
    return x


def test_the_list_has_all_of_them() -> None:
    public = {each for each in vars(codecs).values() if inspect.isclass(each) and each not in (Flat, Stream)}
    assert public == {type(codec) for codec in FLAT} | {Uniform}


@pytest.mark.parametrize("kind", dict.fromkeys(map(type, FLAT)), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("method", ["nbytes", "encode", "decode", "variance", "times"])
def test_all_are_called_alike(kind: type[Flat], method: str) -> None:
    assert inspect.signature(getattr(kind, method)) == inspect.signature(getattr(Flat, method))


@pytest.mark.parametrize("codec", FLAT, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_bytes_are_those_held_and_a_part_is_decoded_as_with_the_rest(codec: Flat, count: int) -> None:
    x = some(codec, count, spoilt=True)
    held = codec.encode(x, noise())
    assert held.dtype == torch.uint8 and held.untyped_storage().nbytes() == codec.nbytes(count) == held.numel()
    every = codec.decode(held, count, noise())
    assert len(every) == count
    for start in range(0, count + 1, max(codec.unit, 256)):
        for stop in (start, start + 1, start + codec.unit, None):
            part = slice(start, stop)
            torch.testing.assert_close(
                codec.decode(held, count, noise(), part), every[part], rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("codec", FLAT, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", (0, 1, 777))
def test_the_layout_in_memory_and_the_dtype_do_not_matter(codec: Flat, dtype: torch.dtype, count: int) -> None:
    x = some(codec, count, dtype, spoilt=True)
    apart = x.repeat_interleave(3)[::3]
    held = codec.encode(x, noise())
    assert torch.equal(codec.encode(apart, noise()), held)
    assert torch.equal(codec.encode(x.float() if x.is_floating_point() else x, noise()), held)
    assert torch.equal(codec.variance(apart).nan_to_num(7), codec.variance(x).nan_to_num(7))
    nothing = codec.decode(held, count, noise()).isnan()
    assert torch.equal(codec.variance(x).isnan(), nothing)
    if not isinstance(codec, EXACT):
        assert nothing.logical_or(x.isfinite()).all()  # what was not finite is NaN


@pytest.mark.parametrize("codec", FLAT, ids=str)
def test_mean_and_variance_are_what_they_claim(codec: Flat) -> None:
    """Over draws, by z-tests of both, of each entry and of all together."""
    x = values(codec, 1024)
    if isinstance(codec, EXACT):
        assert torch.equal(codec.decode(codec.encode(x), 1024), x)
        assert not codec.variance(x).any()
        return
    x[300] = torch.nan
    again = x.repeat(DRAWS)  # each time in blocks of their own
    decoded = codec.decode(codec.encode(again, noise()), len(again), noise())
    assert_moments((decoded.view(DRAWS, -1) - x).double(), codec.variance(x).double())


def assert_moments(errors: Tensor, claimed: Tensor) -> None:
    """Errors ``[draws, entries]`` have mean 0 and a variance ``[entries]``.

    Entries of which the errors are rare are left out one by one, since they are not normal, not all together.
    """
    there = claimed.isfinite()
    assert torch.equal(errors.isnan().any(0), there.logical_not())
    errors, claimed = errors[:, there], claimed[there]
    tiny = 1e-5 * errors.abs().max()  # the noise has 16 bits, and so have the shares of levels
    assert (errors[:, claimed == 0].abs() <= tiny).all()
    spread = errors.square().mean(0)
    means, squares = errors.mean(0), spread - claimed
    worst = math.sqrt(2 * math.log(2 * (2 * means.numel() + 2) / ERROR))
    often = ((errors > 0).sum(0) >= 50).logical_and((errors < 0).sum(0) >= 50)
    assert (means.abs() <= worst * (claimed / DRAWS).sqrt() + tiny)[often].all()
    fourth = (errors.square().var(0) / DRAWS).sqrt()
    assert (squares.abs() <= worst * fourth + tiny.square() + 1e-3 * claimed)[often].all()
    assert means.sum().abs() <= worst * (claimed.sum() / DRAWS).sqrt() + tiny * means.numel()
    assert squares.sum().abs() <= worst * fourth.square().sum().sqrt() + 1e-3 * claimed.sum()


ROWS = [Uniform(bits, 300, block, dithered) for bits in BITS for block, dithered in ((128, True), (7, False))]


@pytest.mark.parametrize("codec", ROWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_decoded_alone_as_with_the_others(codec: Uniform, dtype: torch.dtype) -> None:
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1, 5], x[3] = torch.nan, torch.inf
    held = codec.encode(x.t().contiguous().t(), 3)
    assert all(map(torch.equal, map(bits_of, held), map(bits_of, codec.encode(x, 3))))
    assert sum(part.untyped_storage().nbytes() for part in held) == codec.nbytes(5, dtype)
    every = codec.decode(*held, 3, dtype=dtype)
    assert every.shape == x.shape and every.dtype == dtype
    assert torch.equal(codec.variance(x).isnan(), every.isnan())
    for first, last in ((0, 5), (1, 3), (4, 5), (2, 2)):
        part = codec.decode(*(each[first:last] for each in held), 3, first_row=first, dtype=dtype)
        torch.testing.assert_close(part, every[first:last], rtol=0, atol=0, equal_nan=True)


def bits_of(tensor: Tensor) -> Tensor:
    """Of any dtype, to be compared where there is NaN."""
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("size", [(0, 300), (3, 0), (0, 0), (1, 1)])
def test_rows_may_be_missing_or_empty(size: tuple[int, int]) -> None:
    codec, x = Uniform(3, size[1], max(1, min(7, size[1]))), torch.ones(size)
    held: Any = codec.encode(x, 0)
    assert sum(part.numel() * part.itemsize for part in held) == codec.nbytes(size[0])
    assert torch.equal(codec.decode(*held), x) and codec.variance(x).shape == x.shape


@pytest.mark.parametrize("codec", ROWS, ids=str)
def test_mean_and_variance_of_rows_are_what_they_claim(codec: Uniform) -> None:
    x = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    x[0, 150] = -torch.inf
    held = codec.encode(x.expand(DRAWS, 300), 5)
    assert_moments((codec.decode(*held, 5) - x).double(), codec.variance(x)[0].double())


def test_a_part_that_cannot_be_decoded_alone_is_refused() -> None:
    codec = Blocks(4)
    held = codec.encode(torch.ones(600), noise())
    with pytest.raises(ValueError, match=r"part=slice\(3, 9, None\): expected to begin at a multiple of 256"):
        codec.decode(held, 600, noise(), slice(3, 9))
    with pytest.raises(ValueError, match="noise=None: expected a stream"):
        codec.decode(held, 600)
