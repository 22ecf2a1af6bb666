"""Positions that an output uses."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from randbp.estimators.positions import used_positions
from tests.cases import Case, cases, transposed_cases


@given(case=st.one_of(cases(largest=8), transposed_cases()))
def test_every_position_that_an_output_uses_is_named_once(case: Case) -> None:
    x, weight, _ = case.tensors()
    spec = case.spec()
    grad = torch.autograd.grad(case.native(x, weight, None).sum(), x)[0]  # all kernel entries are positive
    used = used_positions(spec, x.device).tolist()
    met = set(grad[0].sum(0).flatten().nonzero().flatten().tolist())
    assert len(set(used)) == len(used) and met <= set(used)
    if max(p.dilation for p in spec.patterns) == max(p.stride for p in spec.patterns) == 1 and type(case) is Case:
        assert set(used) == met
