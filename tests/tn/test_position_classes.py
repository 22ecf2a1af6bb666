"""VJPs class by class: their sum over the position classes is the whole VJP, in every layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from randbp import tn
from randbp.tn.planning.plan import make_plan
from tests.cases import Case, cases, transposed_cases
from tests.tn.strategies import another_machine, random_operands

LAYERS = st.one_of(cases(), transposed_cases())


def at(tensor: Tensor, positions: tn.PositionClass) -> Tensor:
    """A tensor's entries at the positions of a class."""
    for dim, coordinates in enumerate(positions.positions, 2):
        tensor = tensor.index_select(dim, torch.tensor(coordinates, dtype=torch.long))
    return tensor


def entries(positions: tn.PositionClass) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(k.start, k.stop, k.step) for k in positions.kernels))


def exact(case: Case, x: Tensor, weight: Tensor, output_grad: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    return torch.autograd.grad(case.native(x, weight, None), (weight, x), output_grad)


@given(case=LAYERS, whole=st.booleans())
def test_classes_add_up_to_both_vjps(case: Case, whole: bool) -> None:
    x, weight, _ = (None if t is None else t.detach() for t in case.tensors())
    assert x is not None and weight is not None
    spec, output_grad = case.spec(), case.output_grad(case.native(x, weight, None))
    weight_grad, x_grad = exact(case, x, weight, output_grad)
    found = torch.zeros_like(weight)
    for each in (tn.whole_class(spec, "input"),) if whole else tn.position_classes(spec, "input"):
        part = tn.weight_vjp_of_positions(spec, each).contract(input=at(x, each), output_grad=output_grad)
        found[entries(each)] += part
    torch.testing.assert_close(found, weight_grad)
    found = torch.zeros_like(x)
    for each in (tn.whole_class(spec, "output"),) if whole else tn.position_classes(spec, "output"):
        part = weight[entries(each)]
        found += tn.input_vjp_of_positions(spec, each).contract(output_grad=at(output_grad, each), weight=part)
    torch.testing.assert_close(found, x_grad)


@given(case=LAYERS)
def test_vjps_of_constants(case: Case) -> None:
    x, weight, _ = (None if t is None else t.detach() for t in case.tensors())
    assert x is not None and weight is not None
    spec, output_grad = case.spec(), case.output_grad(case.native(x, weight, None))
    mean = x.flatten(2).mean(2)
    constant = mean.view(*mean.shape, *[1] * spec.dims).expand_as(x)
    found = tn.constant_input_weight_vjp(spec).contract(mean=mean, output_grad=output_grad)
    torch.testing.assert_close(found, exact(case, constant, weight, output_grad)[0])
    mean = output_grad.flatten(2).mean(2)
    constant = mean.view(*mean.shape, *[1] * spec.dims).expand_as(output_grad)
    found = tn.constant_output_grad_input_vjp(spec).contract(mean=mean, weight=weight)
    torch.testing.assert_close(found, exact(case, x, weight, constant)[1])


@pytest.mark.parametrize(("size", "kernel"), [((40, 36), 7), ((12, 14, 40), 5), ((60,), 3)])
def test_constants_of_large_images_take_no_large_matrix(size: tuple[int, ...], kernel: int) -> None:
    spec = tn.ConvSpec((2, 3, *size), 4, kernel, padding=kernel // 2)
    for net in (tn.constant_output_grad_input_vjp(spec), tn.constant_input_weight_vjp(spec)):
        plan, operands = make_plan(net, torch.float64, torch.device("cpu")), random_operands(net)
        with another_machine(small=0):
            made = make_plan(net, torch.float64, torch.device("cpu"))
        for each in (plan, made):
            result = each.run([operands[slot] for slot in each.slots])
            torch.testing.assert_close(result, torch.einsum(*net.einsum(operands)), rtol=1e-10, atol=1e-10)
