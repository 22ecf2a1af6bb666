"""Arithmetic piece by piece gives what arithmetic on whole tensors gives."""

import pytest
import torch

from randbp.curvature.pieces import Scaled, pieces

SHAPES = [(3,), (700, 300), (40, 6, 70, 30), (3000, 64, 3, 3)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "transposed", "unlike"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_cover_every_entry_once(shape, layout):
    first, total = torch.randn(shape), torch.zeros(shape)
    if layout == "transposed":
        first, total = first.t() if len(shape) == 2 else first, total.t() if len(shape) == 2 else total
    elif layout == "unlike":
        first = first.transpose(0, -1).contiguous().transpose(0, -1)
    elif len(shape) == 4:
        first, total = (each.contiguous(memory_format=layout) for each in (first, total))
    parts = list(pieces(first, total))
    for piece, part in parts:
        part += piece
    assert torch.equal(first, total)
    if layout != "unlike" and total.numel() > 2**17:
        assert len(parts) > 1 and max(piece.numel() for piece, _ in parts) <= 2**16


@pytest.mark.parametrize("groups", [1, 2, 300])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(600, 30, 3, 3), (1200, 7), (600, 5, 20)])
def test_scaled_gradients(shape, transposed, groups):
    grad, total = torch.randn(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    by_group = grad.unflatten(0, (groups, -1))
    rows, columns = by_group.shape[1 + transposed], by_group.shape[2 - transposed]
    first = torch.rand(groups, columns, *shape[2:]).double().unsqueeze(2 if transposed else 1)
    second = torch.rand(groups, rows, *[1] * (len(shape) - 2)).double().unsqueeze(1 if transposed else 2)
    scaled, before = Scaled(grad, (first, second), groups), grad.clone()
    for piece, part in pieces(scaled, total):
        part += piece
        assert piece.numel() <= 2**16
    expected = (by_group * first * second).flatten(0, 1)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(scaled.dot(), (expected * grad).sum())
    assert torch.equal(grad, before)
