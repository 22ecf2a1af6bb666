"""Stochastic rounding: packed without a gap, unbiased entry by entry, as frugal as it says."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from randbp import NormSpatial, Projection, Rounding, Spatial, tn
from randbp.codecs import Uniform
from randbp.estimators import Draw
from randbp.functional import conv_spec
from randbp.kernels.packing import pack, packed_size, unpack
from tests.cases import Case, cases


@given(bits=st.integers(1, 8), rows=st.integers(0, 3), length=st.integers(1, 9), seed=st.integers(0, 99))
def test_packing_is_dense_and_reversible(bits: int, rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, 8 * length), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, length * bits) and packed_size(8 * length, bits) == length * bits
    assert torch.equal(unpack(packed, bits, 8 * length), codes)


@given(
    bits=st.integers(1, 8),
    shape=st.sampled_from([(3, 5), (9, 2, 7), (4, 3, 5, 5), (1, 1, 1)]),
    block=st.sampled_from([3, 8, 16, 256]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_rounding_is_unbiased_and_stays_within_a_step(bits: int, shape: tuple[int, ...], block: int, seed: int) -> None:
    """z-test of each entry over 2000 draws; error probability 1e-6 per case (Bonferroni), with the known variance."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    entries = math.prod(shape[1:])
    layout = Uniform(bits, entries, min(block, entries))
    codes, scales = layout.encode(x.flatten(1).repeat(2000, 1), seed)  # as many examples, each rounded anew
    draws = layout.decode(codes, scales).view(2000, *shape)
    step = scales[: len(x), :, 1].repeat_interleave(layout.block, 1)[:, :entries].reshape(shape)
    assert ((draws - x).abs() <= step * (1 + 1e-9) + 1e-12).all()
    fraction = (draws[0] - x).abs() / step.clamp_min(1e-12)
    variance = step**2 * fraction * (1 - fraction)
    z = (draws.mean(0) - x).abs() / (variance / 2000).sqrt().clamp_min(1e-12)
    limit = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 1e-6 / x.numel(), dtype=torch.float64)).item()
    # Where the expected number of the rarer outcome is below 20 the count is Poisson, not normal.
    common = (fraction.clamp(0, 1) * (1 - fraction.clamp(0, 1)) * 2000) > 20
    assert (z[common] < limit).all()


def test_values_on_the_grid_are_exact() -> None:
    x = torch.arange(16.0).repeat(2, 4).view(2, 4, 4, 4)
    layout = Uniform(4, 64, 16)
    assert torch.equal(layout.decode(*layout.encode(x.flatten(1), 0)).view_as(x), x)


def test_the_order_of_memory_does_not_matter() -> None:
    x = torch.rand(16, 24)
    layout = Uniform(4, 24, 24)
    for expected, found in zip(layout.encode(x.flatten(1), 0), layout.encode(x.t().contiguous().t(), 0), strict=True):
        assert torch.equal(found, expected)


def test_constant_blocks_are_exact() -> None:
    x = torch.full((2, 3, 5), 0.1)
    layout = Uniform(1, 15, 8)
    assert torch.equal(layout.decode(*layout.encode(x.flatten(1), 0)).view_as(x), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_value_spoils_no_other(value: float) -> None:
    x = torch.rand(2, 4, 8)
    x[1, 2, 3] = value
    layout = Uniform(3, 32, 8)
    decoded = layout.decode(*layout.encode(x.flatten(1), 0)).view_as(x)
    assert torch.equal(decoded.isfinite(), x.isfinite())
    assert (decoded - x)[x.isfinite()].abs().max() <= 1 / 6


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("block", [256, 64, "channel"])
def test_held_bytes_of_a_real_layer(bits: int, block: Any) -> None:
    x = torch.randn(16, 32, 16, 16)
    spec = conv_spec(x, torch.randn(8, 32, 3, 3), 1, 1, 1, 1)
    held = Rounding(bits, block=block).sketch(x, spec, Draw(0))
    scales = 16 * 32 * 256 // (256 if block == "channel" else block) * 2 * (2 if bits <= 2 else 4)
    expected = x.numel() * bits // 8 + scales
    assert sum(t.untyped_storage().nbytes() for t in held) == Rounding(bits, block=block).describe(spec).held_bytes
    assert sum(t.untyped_storage().nbytes() for t in held) == expected


@given(bits=st.integers(1, 3), block=st.sampled_from([8, 16, 256]), seed=st.integers(0, 99), offset=st.integers(-9, 9))
@settings(max_examples=20)
def test_scales_of_one_and_two_bits_are_short_and_unbiased(bits: int, block: int, seed: int, offset: int) -> None:
    """z-test of each entry's mean over 2000 draws of its scales; error probability 1e-6 per case (Bonferroni)."""
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(seed)) + offset
    layout = Uniform(bits, 120, min(block, 120))
    codes, scales = layout.encode(x.flatten(1), seed)
    exact = layout.decode(codes, scales).double()
    many, again = scales.repeat(2000, 1, 1), codes.repeat(2000, 1)
    short = layout.short_scales(many, seed + 1)
    assert short.dtype == (torch.bfloat16 if bits <= 2 else torch.float32)
    draws = layout.decode(again, short).double().view(2000, 2, 120)
    size = scales.abs().repeat_interleave(layout.block, 1)[:, :120]
    reach = (size[..., 0] + (2**bits - 1) * size[..., 1]) * 2**-7
    assert ((draws - exact).abs() <= reach).all() and bool((draws != exact).any()) == (bits <= 2)
    deviation = draws.std(0).clamp_min(1e-9)
    limit = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 1e-6 / x.numel(), dtype=torch.float64)).item()
    # Two numbers are drawn per entry; where one of their two outcomes is rare, the mean is not normal.
    common = deviation > 0.1 * (draws - draws.mean(0)).abs().amax(0)
    assert (((draws.mean(0) - exact).abs() / (deviation / 2000**0.5))[common] < limit).all()


def test_precise_and_dithered_scales_stay_as_they_are() -> None:
    x = torch.randn(2, 64, dtype=torch.float64)
    for layout, values in (
        (Uniform(2, 64), x),
        (Uniform(2, 64, dithered=True), x.float()),
        (Uniform(3, 64), x.float()),
    ):
        scales = layout.encode(values, 0)[1]
        assert layout.short_scales(scales, 1) is scales


@given(case=cases(), bits=st.integers(1, 8), block=st.sampled_from([8, 256, "channel"]))
def test_eight_bits_are_closer_than_one_and_all_are_finite(case: Case, bits: int, block: Any) -> None:
    x, weight, _ = (None if t is None else t.detach() for t in case.tensors())
    assert x is not None and weight is not None
    spec = conv_spec(x, weight, **case.geometry)
    estimator = Rounding(bits, block=block)
    output_grad = torch.ones(spec.output_shape, dtype=x.dtype)
    got = estimator.weight_vjp(estimator.sketch(x, spec, Draw(1)), output_grad, spec, Draw(1))
    leaf = weight.requires_grad_()
    expected = torch.autograd.grad(case.native(x, leaf, None).sum(), leaf)[0]
    worst = (x.max() - x.min()) / (2**bits - 1) * output_grad.numel()
    assert ((got - expected).abs() <= worst * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize(
    "inner", [Spatial(0.5), NormSpatial(0.5), NormSpatial(0.5, center=4), Projection(0.5)], ids=str
)
def test_around_a_sampler_many_bits_change_little(inner: Spatial | NormSpatial | Projection) -> None:
    generator = torch.Generator().manual_seed(0)
    x, output_grad = (torch.rand(4, 8, 8, 8, generator=generator) for _ in range(2))
    spec = conv_spec(x, torch.empty(8, 8, 3, 3), 1, 1, 1, 1)
    rounded = Rounding(8, inner)
    kept = inner.sketch(x, spec, Draw(3))
    held = rounded.sketch(x, spec, Draw(3))
    assert sum(t.nbytes for t in held) < 0.4 * sum(t.nbytes for t in kept)
    difference = rounded.weight_vjp(held, output_grad, spec, Draw(3)) - inner.weight_vjp(
        kept, output_grad, spec, Draw(3)
    )
    assert 0 < difference.norm() < 0.01 * inner.weight_vjp(kept, output_grad, spec, Draw(3)).norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "Rounding: bits=0, expected an integer from 1 to 8"),
        ({"bits": 9}, "Rounding: bits=9, expected an integer from 1 to 8"),
        ({"bits": "4"}, "Rounding: bits='4', expected an integer from 1 to 8"),
        ({"bits": True}, "Rounding: bits=True, expected"),
        ({"bits": 4, "block": 2}, "Rounding: block=2, expected an integer >= 8 or 'channel'"),
        ({"bits": 4, "estimator": 3}, "Rounding: estimator=3, expected an estimator that does not round"),
        ({"bits": 4, "estimator": Rounding(2)}, "expected an estimator that does not round"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Rounding(**arguments)
    assert "\n" not in str(error.value)


PATCHES = tn.ConvSpec((3, 8, 12, 12), 4, 4, stride=4)
OVERLAPPING = tn.ConvSpec((3, 8, 12, 12), 4, 4, stride=3)
ONE_BY_ONE = tn.ConvSpec((3, 8, 12, 12), 4, 1)


@pytest.mark.parametrize(
    ("spec", "dithered"),
    [
        (PATCHES, True),
        (OVERLAPPING, False),
        (ONE_BY_ONE, False),
        (tn.linear_spec((3, 12, 12, 8), 4), True),
        (tn.linear_spec((3, 8 * 12 * 12), 4), False),
    ],
)
def test_noise_is_subtracted_where_zeros_are_rare(spec: tn.ConvSpec, dithered: bool) -> None:
    """The variance of entries: ``h²/12``, with ranges of 8 levels, and twice that where entries on a level are exact.

    The mean of 3,456 squared errors has a standard deviation of 1.6 percent of it; the limits are six of these.
    """
    x = torch.rand(spec.input_shape, generator=torch.Generator().manual_seed(0))
    estimator, draw, count = Rounding(3, block=64), Draw(5), spec.batch_size
    held = estimator.sketch(x, spec, draw)
    found = torch.cat([estimator.examples(held, spec, draw)(slice(n, n + 1)) for n in range(count)])
    assert found.shape == x.shape
    square = (found - x).square().mean() / held[2][..., 1].square().mean()
    assert abs(square * (12 if dithered else 6) - 1) < 0.1
    assert abs((found - x).mean()) < 6 * (square / x.numel()) ** 0.5
