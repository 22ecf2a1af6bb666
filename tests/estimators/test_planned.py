"""The exact VJPs of plans against PyTorch's, over all kinds of layers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp.estimators.planned import planned_input_vjp, planned_weight_vjp
from randbp.functional import conv_spec
from randbp.tn.execute.layer_vjps import native_input_vjp, native_weight_vjp
from tests.cases import Case, cases, linear_cases, transposed_cases


@given(case=st.one_of(cases(), transposed_cases(), linear_cases()), examples=st.integers(1, 3))
def test_it_equals_pytorchs(case: Case, examples: int) -> None:
    """Also for fewer examples than the layer has."""
    spec, x = case.spec(), case.channels_second(case.tensors(torch.float64)[0].detach())
    examples = min(examples, len(x))
    output_grad = torch.randn(spec.output_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arguments = x[:examples], output_grad[:examples], spec
    torch.testing.assert_close(planned_weight_vjp(*arguments), native_weight_vjp(*arguments), rtol=1e-10, atol=1e-10)
    weight = torch.randn(spec.weight_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = planned_input_vjp(output_grad[:examples], weight, spec)
    expected = native_input_vjp(output_grad, weight, spec)[:examples]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_channels_innermost_in_memory() -> None:
    x, weight = torch.randn(4, 8, 9, 9).to(memory_format=torch.channels_last), torch.empty(6, 8, 3, 3)
    spec = conv_spec(x, weight, 1, 1, 1, 1)
    output_grad = torch.randn(spec.output_shape).to(memory_format=torch.channels_last)
    expected = native_weight_vjp(x.contiguous(), output_grad.contiguous(), spec)
    torch.testing.assert_close(planned_weight_vjp(x, output_grad, spec), expected, rtol=1e-4, atol=1e-4)
    weight = torch.randn(weight.shape).to(memory_format=torch.channels_last)
    expected = native_input_vjp(output_grad.contiguous(), weight.contiguous(), spec)
    found = planned_input_vjp(output_grad, weight, spec)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
