"""Drawn hyper-parameters and operands, shared by the tests of the tensor networks."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor

from randbp import tn
from randbp.tn.planning import machine


def another_machine(**constants: Any) -> AbstractContextManager[Any]:
    """Plans are made for, and kernels run on, a machine with some other constants."""
    return mock.patch.object(machine, "cpu", replace(machine.cpu, **constants))


@st.composite
def specs(draw, dims: tuple[int, int] = (1, 3), symmetric: bool = False) -> tn.ConvSpec:
    """Small convolutions with any mixture of kernel, stride, dilation, padding and groups that has an
    output."""
    count = draw(st.integers(*dims))
    groups = draw(st.integers(1, 3))
    sizes, kernels, strides, dilations, pads = [], [], [], [], []
    for _ in range(count):
        kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        left = draw(st.integers(0, 2))
        right = left if symmetric else draw(st.integers(0, 2))
        least = max(1, dilation * (kernel - 1) + 1 - left - right)
        sizes.append(draw(st.integers(least, least + (5 if count < 3 else 2))))
        kernels.append(kernel)
        strides.append(draw(st.integers(1, 3)))
        dilations.append(dilation)
        pads.append((left, right))
    return tn.ConvSpec(
        (draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), *sizes),
        groups * draw(st.integers(1, 2)),
        tuple(kernels),
        tuple(strides),
        tuple(pads),
        tuple(dilations),
        groups,
    )


def random_operands(net: tn.TensorNetwork, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """Tensors for the slots that nothing is bound to: standard normal data, uniform indices."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for slot, shape in net.slots.items():
        if slot in net.bound:
            continue
        if slot in net.index_slots:
            limit = index_limit(net, slot)
            tensors[slot] = torch.randint(max(1, limit), shape, generator=generator)
        elif dtype.is_floating_point or dtype.is_complex:
            tensors[slot] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        else:
            tensors[slot] = torch.randint(-4, 5, shape, generator=generator).to(dtype)
    return tensors


def index_limit(net: tn.TensorNetwork, slot: str) -> int:
    node = next(node for node in net.nodes if isinstance(node, tn.Selection) and node.slot == slot)
    limit = 1
    for leg in node.targets:
        limit *= net.sizes[leg]
    return limit


def assert_matches_einsum(net: tn.TensorNetwork, seed: int = 0, rtol: float = 1e-10) -> Tensor:
    """The contraction equals the naive einsum in value, shape and data type; returns it."""
    operands = random_operands(net, seed=seed)
    result = net.contract(operands)
    oracle = torch.einsum(*net.einsum(operands))
    assert result.shape == oracle.shape == net.output_shape
    assert result.dtype == (torch.float64 if operands else torch.float32)
    torch.testing.assert_close(result, oracle, rtol=rtol, atol=1e-10)
    return result
