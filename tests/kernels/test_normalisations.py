"""Normalisations on codes: PyTorch's gradients of what the codes stand for, the same from all backends."""

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from randbp import kernels
from randbp.kernels import channel_norm_backward, decode, encode, encode_normalised, row_norm_backward

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EPS = 1e-5


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by(backend: Any, operation: Any, *args: Any) -> tuple[Tensor, ...]:
    with kernels.use(backend):
        return operation(*args)


def entries(codes: Tensor, scales: Tensor, seed: int, bits: int, shape: Any) -> Tensor:
    count = torch.Size(shape).numel()
    return decode(codes, scales, seed, 0, bits, 256, count, True, scales.dtype).view(shape)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.just(1), st.sampled_from([1, 2, 4, 6, 34]), st.sampled_from([1, 3, 31, 32, 300])),
    st.tuples(st.integers(1, 5), st.integers(2, 90), st.sampled_from([1, 2, 6, 34, 300]), st.just(1)),
)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(SHAPES, st.booleans(), st.sampled_from(DTYPES), st.sampled_from([1, 3, 4, 8]), st.integers(0, 2**63 - 1))
def test_entries_are_normalised_and_encoded_at_once(
    shape: tuple[int, ...], over_batch: bool, dtype: torch.dtype, bits: int, seed: int
) -> None:
    x, precise = drawn(*shape, dtype=dtype), torch.promote_types(dtype, torch.float32)
    mean, rstd = (drawn(1 if over_batch else shape[0], shape[2], dtype=precise, seed=s) for s in (1, 2))
    whole = (x.to(precise) - mean[:, None, :, None]) * rstd[:, None, :, None]
    expected = by("reference", encode, whole.view(1, -1), seed, 0, bits, 256, True)
    for backend in ("reference", "numba"):
        for found, other in zip(by(backend, encode_normalised, x, mean, rstd, seed, bits), expected, strict=True):
            assert torch.equal(found, other)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    SHAPES, st.sampled_from(["batch", "instance", "halves", "one"]), st.booleans(), st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_channel_norms_are_pytorchs_on_what_is_decoded(
    shape: tuple[int, ...], kind: str, weighted: bool, dtype: torch.dtype, bits: int
) -> None:
    examples, before, channels, after = shape
    precise, over_batch = torch.promote_types(dtype, torch.float32), kind == "batch"
    groups = {"batch": channels, "instance": channels, "one": 1}.get(kind, 2 if channels % 2 == 0 else 1)
    zeros = torch.zeros(1 if over_batch else examples, channels, dtype=precise)
    codes, scales = encode_normalised(drawn(*shape, dtype=precise), zeros, torch.ones_like(zeros), 5, bits)
    value = entries(codes, scales, 5, bits, shape).double()
    v, weight = drawn(*shape, dtype=dtype, seed=3), drawn(channels, dtype=precise, seed=4) if weighted else None

    # The derivative of a normalisation at entries of mean 0 and deviation 1 / r, where x̂ is the value.
    rstd = drawn(len(zeros), groups, seed=6).abs().add(0.5).to(precise)
    rstd = rstd.repeat_interleave(channels // groups, 1)
    scaled = v.double() * (1 if weight is None else weight.double()[None, None, :, None])
    split = (1, examples) if over_batch else (examples, 1)

    def mean(each: Tensor) -> Tensor:
        grouped = each.view(*split, before, groups, -1, after)
        return grouped.mean((1, 2, 4, 5), keepdim=True).expand_as(grouped).reshape(shape)

    wide = rstd.double()[:, None, :, None]
    expected = (
        wide * (scaled - mean(scaled) - value * mean(scaled * value)),
        (v.double() * value).sum((0, 1, 3)),
        v.double().sum((0, 1, 3)),
    )
    args = (codes, scales, 5, bits, v, rstd, weight, groups, over_batch, False, True)
    found = [by(backend, channel_norm_backward, *args) for backend in ("reference", "numba")]
    for each in found:
        assert each[0].dtype == dtype and each[1].dtype == each[2].dtype == precise
        for mine, other, of in zip(each, expected, (dtype, precise, precise), strict=True):
            accuracy = 50 * torch.finfo(of).eps
            torch.testing.assert_close(mine.double(), other, rtol=accuracy, atol=accuracy * float(other.abs().max()))
    assert by("numba", channel_norm_backward, *args[:-1], False)[0].numel() == 0
    corrected = [by(b, channel_norm_backward, *args[:-2], True, True)[0] for b in ("reference", "numba")]
    steps = scales[0, :, 1].double().repeat_interleave(256)[: v.numel()].view(shape)
    together = (examples if over_batch else channels // groups) * before * after
    expected_excess = expected[0] + wide * scaled * steps.square() / 12 / together
    for mine in corrected:
        accuracy = 50 * torch.finfo(dtype).eps
        limit = accuracy * float(expected_excess.abs().max())
        torch.testing.assert_close(mine.double(), expected_excess, rtol=accuracy, atol=limit)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    st.integers(1, 90), st.sampled_from([1, 2, 31, 96, 256, 300, 1000]), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(DTYPES), st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_row_norms_are_pytorchs_on_what_is_decoded(
    rows: int, columns: int, weighted: bool, centred: bool, corrected: bool, dtype: torch.dtype, bits: int
) -> None:
    precise = torch.promote_types(dtype, torch.float32)
    shape = (rows, 1, 1, columns)
    zeros = torch.zeros(rows, 1, dtype=precise)
    codes, scales = encode_normalised(drawn(*shape, dtype=precise), zeros, torch.ones_like(zeros), 5, bits)
    value = entries(codes, scales, 5, bits, (rows, columns)).double()
    v, rstd = drawn(rows, columns, dtype=dtype, seed=3), drawn(rows, seed=6).abs().add(0.5).to(precise)
    weight = drawn(columns, dtype=precise, seed=4) if weighted else None
    scaled, r = v.double() * (1 if weight is None else weight.double()), rstd.double()[:, None]
    input_grad = scaled - value * (scaled * value).mean(1, keepdim=True)
    if centred:
        input_grad = input_grad - scaled.mean(1, keepdim=True)
    if corrected:
        steps = scales[0, :, 1].double().repeat_interleave(256)[: v.numel()].view(rows, columns)
        input_grad = input_grad + scaled * steps.square() / 12 / columns
    expected = (r * input_grad, (v.double() * value).sum(0), v.double().sum(0))
    args = (codes, scales, 5, bits, v, rstd, weight, centred, corrected, True)
    for backend in ("reference", "numba"):
        found = by(backend, row_norm_backward, *args)
        for mine, other, of in zip(found, expected, (dtype, precise, precise), strict=True):
            accuracy = 50 * torch.finfo(of).eps
            torch.testing.assert_close(mine.double(), other, rtol=accuracy, atol=accuracy * float(other.abs().max()))


@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "layer_norm", "rms_norm"])
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    x, v = drawn(4, 1, 64, 400, dtype=torch.float32), drawn(4, 1, 64, 400, dtype=torch.float32, seed=1)
    rstd, found = torch.ones(1 if name == "batch_norm" else 4, 64), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        codes, scales = by("numba", encode_normalised, x, torch.zeros_like(rstd), rstd, 5, 4)
        if name in ("batch_norm", "group_norm"):
            groups = (64, True) if name == "batch_norm" else (8, False)
            found.append(by("numba", channel_norm_backward, codes, scales, 5, 4, v, rstd, None, *groups, True, True))
        else:
            rows, centred = v.view(-1, 400), name == "layer_norm"
            args = (codes, scales, 5, 4, rows, torch.ones(len(rows)), None, centred, True, True)
            found.append(by("numba", row_norm_backward, *args))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 7, 9), (3, 40, 2, 2), (2, 8, 33, 33)])
def test_at_eight_bits_the_gradients_are_nearly_autograds(shape: tuple[int, ...], last: bool) -> None:
    examples, channels = shape[:2]
    x, v = drawn(*shape).requires_grad_(), drawn(*shape, seed=1)
    weight, bias = drawn(channels, seed=2).requires_grad_(), drawn(channels, seed=3).requires_grad_()
    expected = torch.autograd.grad(F.batch_norm(x, None, None, weight, bias, True), (x, weight, bias), v)

    def flat(each: Tensor) -> Tensor:
        if last:
            return each.detach().movedim(1, -1).reshape(examples, -1, channels, 1)
        return each.detach().reshape(examples, 1, channels, -1)

    variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    rstd = (variance + EPS).rsqrt()[None]
    for backend in ("reference", "numba"):
        codes, scales = by(backend, encode_normalised, flat(x), mean[None], rstd, 9, 8)
        args = (codes, scales, 9, 8, flat(v), rstd, weight.detach(), channels, True, True, True)
        found = by(backend, channel_norm_backward, *args)
        assert (found[0] - flat(expected[0])).norm() < 0.02 * expected[0].norm()
        assert (found[1] - expected[1]).norm() < 0.02 * v.norm()
        torch.testing.assert_close(found[2], expected[2])
