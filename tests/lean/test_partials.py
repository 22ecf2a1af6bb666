"""Functions of several tensors hold few bits of each derivative, give PyTorch's values, its gradients on average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from randbp.diagnostics import memory_report

from .same import lean, values_and_grads
from .test_rounded import is_unbiased


def sample(*shape: int, seed: int = 0, least: float | None = None) -> Tensor:
    """Normal numbers, or numbers between the least one and one more."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) if least is None else least + torch.rand(*shape, generator=generator)
    return x.requires_grad_()


X, Y, Z = sample(72, 64), sample(72, 64, seed=1, least=0.5), sample(72, 64, seed=2)
ROW, COLUMN, NUMBER = sample(64, least=0.5), sample(72, 1, least=0.5), sample(1, least=0.5)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], float]] = {
    # and bits held per entry at four bits, relative to PyTorch's entries
    "quotient": (lambda x, y: x / y, (X, Y), 8),
    "div": (torch.div, (X, Y), 8),
    "by keyword": (lambda x, y: torch.div(x, other=y), (X, Y), 8),
    "by a row": (lambda x, y: x / y, (X, ROW), 4),
    "by a column": (lambda x, y: x / y, (X, COLUMN), 4),
    "by a number": (lambda x, y: x.div(y), (X, NUMBER), 4),
    "of a row": (lambda x, y: x / y, (ROW, Y), 8),
    "by a column that is repeated": (lambda x, y: x / y.expand_as(x), (X, COLUMN), 4),
    "of a constant row": (lambda x, y: x.detach() / y, (ROW, Y), 4),
    "by a constant row": (lambda x, y: x / (y.detach() + 1), (X, ROW), 0),
    "in place": (lambda x, y: x.div_(y), (X, Y), 8),
    "/= a column": (lambda x, y: x.__itruediv__(y), (X, COLUMN), 4),
    "by itself and more": (lambda x, y: x / (x.detach().abs() + 1) + x / y, (X, Y), 8),
    "addcdiv": (lambda x, y, z: torch.addcdiv(x, z, y, value=-0.7), (X, Y, Z), 8),
    "addcdiv of a row": (lambda x, y, z: x.addcdiv(z, y), (ROW, Y, Z), 8),
    "logaddexp": (torch.logaddexp, (X, Z), 8),
    "glu": (F.glu, (sample(72, 128),), 4),
    "glu of rows": (lambda x: nn.GLU(0)(x), (sample(144, 64),), 4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_unbiased(name: str) -> None:
    function, inputs, bits = FUNCTIONS[name]
    if bits:
        is_unbiased(function, inputs, bits=2, draws=200)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bytes_held(name: str) -> None:
    function, inputs, bits = FUNCTIONS[name]
    if name == "by itself and more":
        return

    def held(level: Any) -> int:
        return memory_report(lean(lambda *x: function(*(y * 1 for y in x)), level, 4), *inputs).held_bytes

    entries = 144 * 64 if "glu" in name else X.numel()
    expected = entries * bits / 8 * (1 + 2 * 8 / 256) if bits else ROW.nbytes
    small = sum(x.nbytes for x in inputs if x.numel() < 4096)
    infinite = entries * bits / 4 / 8
    assert held("exact") == held(False)
    assert expected <= held(True) <= expected + infinite + 2 * small + 32
    assert held(True) < 0.45 * held(False) or not bits


@pytest.mark.parametrize("format", ["channels_last", "transposed", "sliced", "bfloat16", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_formats(name: str, format: str) -> None:
    function, inputs, _ = FUNCTIONS[name]

    def formatted(x: Tensor) -> Tensor:
        x = x.detach()
        if x.dim() == 2 and "row" not in name and "column" not in name:
            if format == "channels_last":
                x = x.repeat(2, 1).view(2, -1, 8, 8).contiguous(memory_format=torch.channels_last)
            elif format == "transposed":
                x = x.t()
            elif format == "sliced":
                x = x.repeat(1, 2)[:, 3:-1:1]
                x = x[:, : x.shape[1] // 2 * 2]
        return (x.bfloat16() if format == "bfloat16" else x.double() if format == "float64" else x).requires_grad_()

    given = [formatted(x) for x in inputs]
    exact, ours = values_and_grads(function, *given), values_and_grads(lean(function, True, 8), *given)
    assert len(ours) == len(exact)
    for number, (mine, other) in enumerate(zip(ours, exact, strict=True)):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        tolerance = 0.2 if other.numel() == 1 else 0.04  # a sum whose terms cancel
        assert (mine - other).norm() <= (0 if number == 0 else tolerance) * other.norm()


def test_a_safe_quotient() -> None:
    x, y = sample(64, 128), sample(64, 128, seed=3).detach().relu().requires_grad_()

    def safe(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, x / y, 0)

    (_, *exact), (_, *ours) = values_and_grads(safe, x, y), values_and_grads(lean(safe, True, 8), x, y)
    for mine, other in zip(ours, exact, strict=True):
        assert torch.equal(mine.isfinite(), other.isfinite())


def test_small_tensors_constants_and_other_calls_are_pytorchs() -> None:
    x, large = sample(64, 128), sample(64, 128, seed=1, least=0.5)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: x[:2] / x[2:4],
        lambda x: x / 3,
        lambda x: x / large,  # a leaf lives anyway
        lambda x: x / large.detach(),
        lambda x: x / torch.ones(128, dtype=torch.int64),
        lambda x: torch.div(x, x.detach() * 2, rounding_mode="floor"),
    ]
    for call in calls:
        assert type(lean(call, True)(x * 1).grad_fn) is type(call(x * 1).grad_fn)
    for level in ("exact", False):
        assert type(lean(lambda x: x / (x + 1), level)(x * 1).grad_fn).__name__ == "DivBackward0"
    with torch.no_grad():
        out = torch.empty_like(x)
        assert torch.equal(lean(lambda x: torch.div(x, large, out=out), True)(x), out)
    with pytest.raises(RuntimeError, match="Halving dimension must be even"):
        lean(lambda x: F.glu(x[:, 1:]), True)(x)


def test_second_derivatives_are_refused() -> None:
    for function, inputs, bits in FUNCTIONS.values():
        if not bits:
            continue
        given = [x * 1 for x in inputs]
        (first,) = torch.autograd.grad(lean(function, True)(*given).square().sum(), inputs[-1], create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            first.sum().backward()
