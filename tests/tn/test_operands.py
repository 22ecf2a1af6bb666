"""Batched matrix products get operands that PyTorch's kernel takes as they lie, whatever order a network's are in."""

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from randbp import tn
from randbp.tn.execute import diagonals
from randbp.tn.execute.dense import lying
from randbp.tn.planning.plan import make_plan

from .strategies import random_operands, specs


class Products(TorchDispatchMode):
    """Notes the operands of batched products that would be taken apart and copied one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.torn = 0, list[tuple[Any, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.baddbmm_):
            self.count += 1
            operands = args[-2:]
            self.torn += [(func, t.shape, t.stride()) for t in operands if t.numel() and not is_taken(t)]
        return func(*args, **(kwargs or {}))


def is_taken(matrices: Tensor) -> bool:
    """What PyTorch asks of operands before it hands all of them to the processor's library (2.13)."""
    (_, rows, columns), (_, row, column) = matrices.shape, matrices.stride()
    return (row == 1 and column >= rows) or (column == 1 and row >= columns)


@given(shape=st.tuples(*[st.integers(1, 4)] * 3), order=st.permutations(range(3)), step=st.integers(1, 2))
def test_matrices_lie_so_that_they_are_taken(shape: tuple[int, int, int], order: list[int], step: int) -> None:
    matrices = torch.randn([step * size for size in shape])[::step, ::step, ::step].permute(order)
    found = lying(matrices)
    assert is_taken(found) and torch.equal(found, matrices)
    assert (found is matrices) == is_taken(matrices)


OPERATIONS = (tn.conv, tn.weight_vjp, tn.input_vjp, tn.kfac_expand)


@given(spec=specs((1, 3)), operation=st.sampled_from(OPERATIONS))
def test_operands_with_channels_innermost_are_taken_at_once(spec: tn.ConvSpec, operation: Any) -> None:
    net = operation(spec)
    operands = {slot: x.movedim(1, -1).contiguous().movedim(-1, 1) for slot, x in random_operands(net).items()}
    with Products() as products:
        result = net.contract(operands)
    assert not products.torn
    torch.testing.assert_close(result, torch.einsum(*net.einsum(operands)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", diagonals.WAYS[:2])
def test_depthwise_products_of_channels_that_lie_innermost(way: diagonals.Depthwise) -> None:
    spec = tn.ConvSpec((3, 6, 5, 5), 6, 3, padding=1, groups=6)
    net = tn.weight_vjp(spec)
    operands = {k: x.to(memory_format=torch.channels_last) for k, x in random_operands(net).items()}
    with mock.patch.object(diagonals, "fastest_way", lambda *_: way):
        plan = make_plan(net, torch.float64, torch.device("cpu"))
    with Products() as products:
        result = plan.run([operands[slot] for slot in plan.slots])
    assert products.count and not products.torn
    torch.testing.assert_close(result, torch.einsum(*net.einsum(operands)))
