"""Results of networks are the same where native kernels take a few examples at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from hypothesis import given
from torch import Tensor
from torch.autograd import forward_ad

from randbp import tn
from randbp.tn.execute import batch_parts
from tests.cases import Case, cases

from .strategies import another_machine


@contextmanager
def everything_is_large() -> Iterator[list[int]]:
    """All tensors count as large and one example makes a part; gives how many each kernel took at once."""
    taken: list[int] = []
    decide = batch_parts.examples_at_once

    def noted(tensors: tuple[Tensor, ...], elements: int) -> int:
        taken.append(decide(tensors, elements))
        return taken[-1]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with another_machine(large=1, part=1), patch.object(batch_parts, "examples_at_once", noted):
            yield taken
    finally:
        torch.set_num_threads(threads)


def networks(case: Case) -> list[tuple[tn.TensorNetwork, dict[str, Tensor]]]:
    """The convolution and both of its VJPs, with operands."""
    spec = case.spec()
    x, weight, _ = case.tensors()
    x, weight = x.detach().double(), weight.detach().double()
    output_grad = torch.randn(spec.output_shape, dtype=torch.float64)
    return [
        (tn.conv(spec), {"input": x, "weight": weight}),
        (tn.weight_vjp(spec), {"input": x, "output_grad": output_grad}),
        (tn.input_vjp(spec), {"weight": weight, "output_grad": output_grad}),
    ]


@given(case=cases(largest=8))
def test_parts_of_a_batch_give_the_same(case: Case) -> None:
    for net, operands in networks(case):
        whole = net.contract(operands)
        with everything_is_large():
            torch.testing.assert_close(net.contract(operands), whole)


def test_native_kernels_take_parts() -> None:
    spec = tn.ConvSpec((5, 2, 9, 9), 3, 3, padding=1)
    x, weight, output_grad = (torch.randn(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape))
    with everything_is_large() as taken:
        tn.conv(spec).contract(input=x, weight=weight)
        tn.weight_vjp(spec).contract(input=x, output_grad=output_grad)
        tn.input_vjp(spec).contract(weight=weight, output_grad=output_grad)
    assert taken == [1, 1, 1]


def test_derivatives_and_transforms_pass_through_large_results() -> None:
    spec = tn.ConvSpec((3, 2, 6, 6), 3, 3)
    x, weight = torch.randn(spec.input_shape, dtype=torch.float64), torch.randn(spec.weight_shape, dtype=torch.float64)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return tn.conv(spec).contract({"input": x, "weight": weight})

    def tangent() -> Tensor:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(run(x, forward_ad.make_dual(weight, weight))).tangent
        assert found is not None
        return found

    many = torch.stack([x, 2 * x])

    def results() -> list[Tensor]:
        needs = x.clone().requires_grad_()
        run(needs, weight).square().sum().backward()
        assert needs.grad is not None
        return [
            needs.grad,
            torch.func.vmap(run, (0, None))(many, weight),
            torch.func.vmap(run, (None, 0))(x, torch.stack([weight, -weight])),
            tangent(),
            torch.func.jvp(run, (x, weight), (x, weight))[1],
            torch.func.jacrev(run)(x, weight),
        ]

    expected = results()
    with everything_is_large():
        for result, other in zip(results(), expected, strict=True):
            torch.testing.assert_close(result, other)
