"""Functions that move entries hold indices and masks, no entries; values and gradients are PyTorch's bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from randbp.diagnostics import memory_report
from randbp.lean import lean_call

from .same import assert_same, lean, values_and_grads
from .test_comparisons import tensors
from .test_norms import FORMATS
from .test_rounded import is_unbiased

X, Y = (torch.randn(64, 128, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (0, 1))
IMAGES = torch.randn(4, 8, 16, 17, generator=torch.Generator().manual_seed(2)).requires_grad_()
PLACES = torch.randint(0, 64, (64, 128), generator=torch.Generator().manual_seed(3))
ROWS = PLACES[:, 0].clone()
GRID = torch.rand(4, 9, 10, 2, generator=torch.Generator().manual_seed(4)) * 2.2 - 1.1

ORDERED: dict[str, Callable[[Tensor, int], Any]] = {
    "max": lambda x, dim: torch.max(x, dim),
    "min": lambda x, dim: x.min(dim=dim, keepdim=True),
    "median": lambda x, dim: x.median(dim, True),
    "nanmedian": lambda x, dim: torch.nanmedian(x, dim=dim),
    "mode": lambda x, dim: x.mode(dim),
    "kthvalue": lambda x, dim: x.kthvalue(1, dim),
    "topk": lambda x, dim: torch.topk(x, 1, dim),
    "sort": lambda x, dim: torch.sort(x, dim, descending=True),
    "stable sort": lambda x, dim: x.sort(stable=True, dim=dim),
    "msort": lambda x, dim: torch.msort(x),
    "cummax": lambda x, dim: x.cummax(dim),
    "cummin": lambda x, dim: torch.cummin(x, dim),
}
MOVES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], float]] = {  # and bits held per entry
    "gather": (lambda x: x.gather(0, PLACES), (X,), 0),
    "gather by name": (lambda x: torch.gather(input=x, dim=1, index=PLACES[:, :5]), (X,), 0),
    "take": (lambda x: x.take(PLACES), (X,), 0),
    "take_along_dim": (lambda x: torch.take_along_dim(x, PLACES, 1), (X,), 8),
    "masked_select": (lambda x: x.masked_select(PLACES > 20), (X,), 1),
    "a mask as subscript": (lambda x: x[PLACES > 20], (X,), 1),
    "masks of rows as subscripts": (lambda x: x[PLACES[:, 0] > 20, 5:], (X,), 1 / 16),
    "index_add": (lambda x, y: x.index_add(0, ROWS, y, alpha=0.5), (X, Y), 0),
    "index_add_": (lambda x, y: x.index_add_(0, ROWS, y), (X, Y), 0),
    "index_copy": (lambda x, y: x.index_copy(0, torch.arange(64).flip(0), y), (X, Y), 1 / 2),
    "scatter_reduce sum": (lambda x, y: x.scatter_reduce(0, PLACES, y, "sum"), (X, Y), 0),
    "scatter_reduce mean": (lambda x, y: x.scatter_reduce(0, PLACES, y, "mean", include_self=False), (X, Y), 0),
    "reflect": (lambda x: F.pad(x, (1, 2, 3, 4), mode="reflect"), (IMAGES,), 0),
    "reflect signals": (lambda x: F.pad(x[0], (1, 2), mode="reflect"), (IMAGES,), 0),
    "replicate": (lambda x: F.pad(x, (1, 2, 3, 4), "replicate"), (IMAGES,), 0),
    "replicate volumes": (lambda x: F.pad(x[None], (1, 2, 3, 4, 0, 1), "replicate"), (IMAGES,), 0),
    "grid_sample": (
        lambda x: F.grid_sample(x, GRID.to(x) + 0, align_corners=False),
        (IMAGES,),
        32 * GRID.numel() / 8704,
    ),
    "grid_sample nearest": (
        lambda x: F.grid_sample(x, GRID.to(x) + 0, "nearest", "border", True),
        (IMAGES,),
        32 * GRID.numel() / 8704,
    ),
}


@pytest.mark.parametrize("name", ORDERED)
@given(x=tensors(), data=st.data())
def test_functions_that_return_indices(name: str, x: Tensor, data: Any) -> None:
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))

    def function(x: Tensor) -> Any:
        return ORDERED[name](x, dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lean_call, "SMALL", 1)
        assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@pytest.mark.parametrize(("size", "bytes_"), [(128, 1), (256, 1), (257, 2), (33000, 4)])
def test_indices_are_as_small_as_they_can_be(size: int, bytes_: int) -> None:
    x = torch.randn(size, -(-8192 // size)).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return (x * 1).sort(0)[0]

    assert memory_report(lean(function), x).held_bytes == x.numel() * bytes_
    assert_same(values_and_grads(lean(function), x), values_and_grads(function, x))


@pytest.mark.parametrize("order", ["contiguous", "channels last", "transposed", "every other"])
@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moves(name: str, order: str, dtype: torch.dtype) -> None:
    function, inputs, _ = MOVES[name]
    given = [FORMATS[order](x.detach().to(dtype)).requires_grad_() for x in inputs]
    assert_same(values_and_grads(lean(function), *given), values_and_grads(function, *given))


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("level", ["exact", True])
def test_bits_held(name: str, level: Any) -> None:
    function, inputs, bits = MOVES[name]

    def held(level: Any) -> float:
        return memory_report(lean(lambda *x: function(*(y * 1 for y in x)), level), *inputs).held_bytes

    assert held(level) == inputs[0].numel() * bits / 8
    assert held(False) >= held(level) + (0 if "rows" in name else 0.7 * inputs[0].numel())


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_grid_that_learns_rounds_the_input(mode: str) -> None:
    grid = GRID.detach().requires_grad_()

    def function(x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode, align_corners=False)

    is_unbiased(function, (IMAGES, grid), bits=2, draws=100)
    held = [
        memory_report(lean(lambda x, g: function(x * 1, g), level), IMAGES, grid).held_bytes for level in (False, True)
    ]
    assert held[0] >= IMAGES.nbytes and held[1] < 0.14 * IMAGES.nbytes + GRID.nbytes
    assert_same(values_and_grads(lean(function), IMAGES, grid), values_and_grads(function, IMAGES, grid))


def test_other_calls_are_pytorchs() -> None:
    calls: list[Callable[[Tensor], Any]] = [
        lambda x: x.scatter_reduce(0, PLACES, x, "amax"),
        lambda x: x[3:, 2] + x[0, 2],
        lambda x: x[ROWS],
        lambda x: F.pad(x, (1, 2), value=3.0),
        lambda x: x[:0].gather(0, PLACES[:0]).sum() + x[:0].sort(1)[0].sum() + x.sum(),
        lambda x: x[0, 0].sort()[0] + x[0, 0].max(0)[0],
    ]
    for call in calls:
        assert_same(values_and_grads(lean(call), X), values_and_grads(call, X))
    with torch.no_grad():
        values, indices = torch.empty(64), torch.empty(64, dtype=torch.long)
        lean(lambda x: torch.max(x * 1, 1, out=(values, indices)))(X)
        assert torch.equal(values, X.max(1)[0])
    found = lean(lambda x: (x * 1).max(1))(X)
    assert type(found) is type(X.max(1)) and torch.equal(found.indices, X.max(1).indices)
