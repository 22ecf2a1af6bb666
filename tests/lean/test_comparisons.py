"""What a comparison decides takes a bit or two; values and gradients are bit for bit PyTorch's, even of ties, NaN."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from randbp.diagnostics import memory_report
from randbp.lean import lean_call

from .same import assert_same, lean, values_and_grads


def test_bounds_that_meet_have_pytorchs_gradients() -> None:
    x, low = torch.randn(64, 100).requires_grad_(), torch.randn(100).requires_grad_()
    high = torch.where(torch.arange(100) % 3 == 0, low.detach(), low.detach() + 0.5).requires_grad_()
    assert_same(values_and_grads(lean(torch.clamp), x, low, high), values_and_grads(torch.clamp, x, low, high))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.amax(x, axis=1, keepdims=True),
        lambda x: torch.sort(input=x, dim=1)[0],
        lambda x: torch.abs(a=x),
        lambda x: x.max(axis=0)[0],
        lambda x: torch.softmax(input=x, axis=1),
        lambda x: x.amin(torch.tensor(1)),
        lambda x: torch.amax(x, (np.int64(0), -1)),
        lambda x: x.prod(np.int64(1)),
        lambda x: x.logsumexp(np.int64(1)),
    ],
)
@pytest.mark.parametrize("level", ["exact", True])
def test_names_and_numbers_of_numpy_are_taken_as_pytorch_takes_them(
    function: Callable[[Tensor], Tensor], level: Any
) -> None:
    x = torch.rand(64, 100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = values_and_grads(lean(function, level, bits=8), x), values_and_grads(function, x)
    if level == "exact":
        assert_same(ours, theirs)
    assert torch.equal(ours[0], theirs[0]) and ours[1].shape == theirs[1].shape


ONE: dict[str, tuple[Callable[..., Tensor], float]] = {  # and bits held per entry
    "abs": (torch.abs, 2),
    "abs()": (abs, 2),
    "abs_": (lambda x: x.abs_(), 2),
    "absolute": (Tensor.absolute, 2),
    "max": (lambda x: x.max(), 1),
    "min": (torch.min, 1),
    "median": (torch.median, 1),
    "nanmedian": (Tensor.nanmedian, 1),
    "amax": (lambda x: x.amax(), 1),
    "nansum": (lambda x: x.nansum(0), 1),
    "nanmean": (lambda x: torch.nanmean(x, -1, keepdim=True), 1),
    "nan_to_num": (lambda x: x.nan_to_num(0.5, 2), 1),
    "sum of magnitudes": (lambda x: torch.linalg.vector_norm(x, 1, -1), 2),
    "norm": (lambda x: x.norm(p=1, dim=0), 2),
}
TWO: dict[str, tuple[Callable[..., Tensor], float]] = {
    "maximum": (torch.maximum, 2),
    "minimum": (lambda x, y: x.minimum(other=y), 2),
    "max": (torch.max, 2),
    "min": (lambda x, y: torch.min(x, other=y), 2),
    "fmax": (torch.fmax, 1),
    "fmin": (Tensor.fmin, 1),
    "clamp min": (lambda x, y: x.clamp(min=y), 2),
    "clamp max": (lambda x, y: torch.clamp(x, max=y), 2),
    "clamp": (lambda x, y: torch.clip(x, y, 0.5 - y), 2),
    "of a number": (lambda x, y: torch.maximum(x, y.flatten()[0].detach()), 2),
    "of itself": (lambda x, y: torch.maximum(x, x) + torch.fmin(x, x) + x.clamp(x, x) + y, 5),
    "of a constant": (lambda x, y: torch.minimum(x, y.detach()), 2),
    "constant first": (lambda x, y: torch.minimum(x.detach(), y), 2),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture
def whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_call, "SMALL", 1)


@st.composite
def tensors(draw: Any, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """With ties, and numbers that compare oddly, in several orders in memory."""
    shape = shape or tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(shape, generator=generator).mul_(2)
    x = x.round() if draw(st.booleans()) else x
    for odd in draw(st.lists(st.sampled_from([torch.nan, torch.inf, -torch.inf, -0.0, 0.0]), max_size=3)):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = odd
    x = x.to(dtype or draw(st.sampled_from(DTYPES)))
    order = draw(st.sampled_from(["plain", "transposed", "sliced"]))
    if order == "transposed":
        x = x.mT.contiguous().mT if x.dim() > 1 else x
    elif order == "sliced":
        x = x.repeat_interleave(2, -1)[..., ::2]
    return x.requires_grad_()


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize("name", ONE)
@given(x=tensors())
def test_functions_of_one_tensor(name: str, x: Tensor) -> None:
    function = ONE[name][0]
    assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@pytest.mark.usefixtures("whatever_the_size")
@given(x=tensors(), data=st.data(), keepdim=st.booleans(), greatest=st.booleans())
def test_extremes_of_rows(x: Tensor, data: Any, keepdim: bool, greatest: bool) -> None:
    dims = data.draw(st.lists(st.integers(0, x.dim() - 1), unique=True, max_size=x.dim()))
    dim = [d - x.dim() if data.draw(st.booleans()) else d for d in dims]
    given = dim[0] if len(dim) == 1 and data.draw(st.booleans()) else dim

    def function(x: Tensor) -> Tensor:
        return (torch.amax if greatest else Tensor.amin)(x, given, keepdim)

    assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@pytest.mark.usefixtures("whatever_the_size")
@pytest.mark.parametrize("name", TWO)
@given(x=tensors(), data=st.data())
def test_functions_of_two_tensors(name: str, x: Tensor, data: Any) -> None:
    function = TWO[name][0]
    sizes = [size if data.draw(st.booleans()) else 1 for size in x.shape]
    y = data.draw(tensors(shape=tuple(sizes[data.draw(st.integers(0, len(sizes) - 1)) :]), dtype=x.dtype))
    if data.draw(st.booleans()):  # ties
        with torch.no_grad():
            y.copy_(x[(0,) * (x.dim() - y.dim())][tuple(slice(0, size) for size in y.shape)])
    for inputs in ((x, y), (y, x)):
        assert_same(values_and_grads(lean(function), *inputs), values_and_grads(function, *inputs))


@pytest.mark.parametrize("name", [*ONE, *(f"{name} of two" for name in TWO)])
def test_bits_held(name: str) -> None:
    function, bits = ONE.get(name) or TWO[name.removesuffix(" of two")]
    inputs = [torch.randn(64, 128).requires_grad_() for _ in range(1 if name in ONE else 2)]

    def held(level: Any) -> float:
        report = memory_report(lean(lambda *x: function(*(y * 1 for y in x)), level), *inputs)
        assert "(unknown)" not in {row.operation for row in report.rows}
        return report.held_bytes

    rows = 2 * 128 * 4  # results and counts
    assert held("exact") == held(True)
    assert 0 <= held(True) - inputs[0].numel() * bits / 8 <= rows
    assert held(False) >= inputs[0].nbytes


def chosen_twice(x: Tensor, y: Tensor) -> Tensor:
    mask = x > y
    return torch.where(mask, x, 2 * y) + torch.where(mask, 3 * y, x)


@pytest.mark.parametrize("function", [TWO["of itself"][0], chosen_twice])
def test_what_operands_or_operations_share_works_inside_of_a_checkpoint(function: Any) -> None:
    x, y = torch.randn(64, 128).requires_grad_(), torch.randn(64, 128).requires_grad_()
    ours = values_and_grads(lambda x, y: checkpoint(lean(function), x, y, use_reentrant=False), x, y)
    assert_same(ours, values_and_grads(function, x, y))


def test_operands_are_let_go() -> None:
    x, y = torch.randn(64, 128).requires_grad_(), torch.randn(64, 128).requires_grad_()
    known: list[weakref.ref[Tensor]] = []
    for function in (torch.maximum, lambda x, y: x.clamp(y, y + 1), lambda x, y: x.amax(1) + y.max() + y.abs().sum()):

        def kept(x: Tensor, y: Tensor, function: Callable[..., Tensor] = function) -> Tensor:
            x, y = x * 1, y * 1
            known.extend((weakref.ref(x), weakref.ref(y)))
            return function(x, y)

        result = lean(kept)(x, y)
        gc.collect()
        assert [ref() for ref in known] == [None] * len(known)
        result.sum().backward()


def test_other_calls_are_pytorchs() -> None:
    x, y = torch.randn(64, 128).requires_grad_(), torch.randn(64, 128)
    calls: list[Callable[[Tensor], Any]] = [
        lambda x: torch.maximum(x[0], y[0]),  # small
        lambda x: torch.maximum(x, y.double()),
        lambda x: torch.maximum(x[0], y[:, :1]),  # a comparison would take more than the operands
        lambda x: x[:0].abs(),
        lambda x: x[0, 0].abs() + x[0, 0].max() + x[0, 0].amax(),
        lambda x: (x + 1j * x).abs(),
    ]
    for call in calls:
        assert_same(values_and_grads(lean(call), x), values_and_grads(call, x))
        report = memory_report(lean(lambda x, call=call: call(x * 1)), x)
        assert report.held_bytes == memory_report(lean(lambda x, call=call: call(x * 1), False), x).held_bytes
    with torch.no_grad():
        out = torch.empty(64)
        lean(lambda x: torch.amax(x * 1, 1, out=out))(x)
        assert torch.equal(out, x.amax(1))
    for wrong in (lambda x: torch.maximum(x, y[:3]), lambda x: x.amax(5), lambda x: torch.max(x, 1, True, 3)):
        with pytest.raises((RuntimeError, IndexError, TypeError)) as ours:
            lean(wrong)(x * 1)
        with pytest.raises((RuntimeError, IndexError, TypeError)) as theirs:
            wrong(x * 1)
        assert type(ours.value) is type(theirs.value) and str(ours.value) == str(theirs.value)


@given(rate=st.sampled_from([0.1, 0.5, 0.8]), inplace=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_alpha_dropout(rate: float, inplace: bool, dtype: torch.dtype) -> None:
    def function(x: Tensor) -> Tensor:
        return F.alpha_dropout(x, rate, True, inplace)

    x = torch.randn(64, 65, dtype=dtype).t().requires_grad_()
    assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))
    assert memory_report(lean(lambda x: function(x * 1)), x).held_bytes == x.numel() // 8
