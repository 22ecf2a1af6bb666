import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from randbp.diagnostics import held_for_backward


def test_each_storage_counts_once_with_its_whole_size() -> None:
    base = torch.randn(10, 8, requires_grad=True)
    with held_for_backward() as held:
        column = (base * 1.0)[:, :1]  # 10 of the 80 numbers of a storage
        loss = (column * column).sum() + column.square().sum() + column.exp().sum()
    assert held.count == 2  # the 80 numbers that `column` looks at, and the result of exp
    assert held.bytes == 4 * (80 + 10)
    loss.backward()


def test_parameters_and_buffers_are_excluded_views_included() -> None:
    linear = nn.Linear(16, 4)
    x = torch.randn(5, 16, requires_grad=True)
    with held_for_backward(exclude=linear.parameters()) as held:
        y = linear(x)  # holds x and a transposed view of the weight
    with held_for_backward() as everything:
        z = linear(x)
    assert held.bytes == x.nbytes
    assert everything.bytes == x.nbytes + linear.weight.nbytes
    assert y.shape == z.shape


def test_batch_norm_with_buffers_excluded() -> None:
    norm = nn.BatchNorm2d(6)
    x = torch.randn(4, 6, 5, 5)
    with held_for_backward(exclude=[*norm.parameters(), *norm.buffers()]) as held:
        y = norm(x)
    statistics = 2 * 6 * 4  # mean and inverse standard deviation of the batch
    assert x.nbytes + statistics <= held.bytes <= x.nbytes + statistics + 64
    assert y.requires_grad


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


def test_checkpointing_holds_only_the_input_of_the_segment() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    x = torch.randn(8, 32, requires_grad=True)
    with held_for_backward(exclude=model.parameters()) as held:
        y = checkpoint(model, x, use_reentrant=False)
    assert held.bytes == x.nbytes
    y.sum().backward()
    assert x.grad is not None


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
