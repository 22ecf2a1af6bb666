import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from randbp.diagnostics import held_for_backward


def column(x: Tensor) -> Tensor:
    one = (x * 1.0)[:, :1]  # 10 of the 80 numbers of a storage
    return (one * one).sum() + one.square().sum() + one.exp().sum()


LINEAR, NORM = nn.Linear(16, 4), nn.BatchNorm2d(6)
NET = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
CASES: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...], list[Tensor], int]] = {
    # function, shape of its input, what does not count, bytes
    "each storage once, with its whole size": (column, (10, 8), [], 4 * (80 + 10)),  # and the result of exp
    "views of the weight": (LINEAR, (5, 16), [], 4 * (5 * 16 + 4 * 16)),
    "no views of what is excluded": (LINEAR, (5, 16), [*LINEAR.parameters()], 4 * 5 * 16),
    "no buffers, but statistics": (NORM, (4, 6, 5, 5), [*NORM.parameters(), *NORM.buffers()], 4 * (600 + 2 * 6)),
    "the segment's input": (lambda x: checkpoint(NET, x, use_reentrant=False), (8, 32), [*NET.parameters()], 4 * 256),
}


@pytest.mark.parametrize("name", CASES)
def test_known_byte_counts(name: str) -> None:
    function, shape, exclude, expected = CASES[name]
    x = torch.randn(shape, requires_grad=True)
    with held_for_backward(exclude=exclude) as held:
        y = function(x)
    assert held.bytes == expected and held.count == len(held.holders())
    y.sum().backward()
    assert x.grad is not None and held.bytes == 0


def test_holders_are_named_by_their_origin() -> None:
    x, names = torch.randn(50, requires_grad=True), iter(["exp", "square", "sin"])
    with held_for_backward(origin=lambda: next(names)) as held:
        y = x.exp()
        z = y.square() + x.sin()
    assert [list(savers) for savers in held.holders().values()] == [["exp", "square"], ["sin"]]
    assert z.requires_grad


def test_gradients_and_second_derivatives_are_unchanged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1))
    x = torch.randn(2, 2, 6, 6, requires_grad=True)

    def derivatives() -> list[torch.Tensor]:
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), list(model.parameters())[:3])]

    expected = derivatives()
    with held_for_backward(exclude=model.parameters()) as held:
        measured = derivatives()
    assert held.bytes == 0
    for ours, theirs in zip(measured, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_outlives_the_graph() -> None:
    x = torch.randn(1000, requires_grad=True)
    gc.disable()  # reference counting alone has to free the graph: a cycle would keep it
    try:
        with held_for_backward() as held:
            y = x.exp()  # saves its own output
            assert held.bytes == 4000
            del y
        assert held.bytes == 0
    finally:
        gc.enable()


def test_bytes_fall_after_backward_and_stay_with_a_retained_graph() -> None:
    x = torch.randn(50, requires_grad=True)
    with held_for_backward() as held:
        loss = x.exp().sum()
    loss.backward(retain_graph=True)
    assert held.bytes == 200
    loss.backward()
    assert held.bytes == 0


class _Holds(torch.autograd.Function):
    """Passes `x` on and holds another tensor."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(other)
        return x.clone()


def _sparse(layout: torch.layout) -> tuple[torch.Tensor, int]:
    """A sparse matrix, and the bytes of its parts."""
    if layout is torch.sparse_coo:
        indices, values = torch.tensor([[0, 2, 5], [1, 1, 3]]), torch.ones(3)
        matrix = torch.sparse_coo_tensor(indices, values, size=(6, 6), is_coalesced=True)
        return matrix, indices.nbytes + values.nbytes
    block = (2, 2) if layout in (torch.sparse_bsr, torch.sparse_bsc) else ()
    starts = torch.tensor([0, 1, 2, 3] if block else [0, 1, 1, 2, 2, 2, 3])
    plain, values = torch.tensor([0, 1, 2]), torch.ones(3, *block)
    matrix = torch.sparse_compressed_tensor(starts, plain, values, size=(6, 6), layout=layout)
    return matrix, starts.nbytes + plain.nbytes + values.nbytes


LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_tensors_count_their_indices_and_values(layout: torch.layout) -> None:
    matrix, expected = _sparse(layout)
    with held_for_backward() as held:
        y = _Holds.apply(torch.ones(2, requires_grad=True), matrix)
    assert held.bytes == expected
    assert y.requires_grad


def test_meta_tensors_are_told_apart() -> None:
    x = torch.randn(4, 4, device="meta", requires_grad=True)
    with held_for_backward() as held:
        y = x.exp().exp()
    assert held.bytes == 2 * 64
    assert y.requires_grad
