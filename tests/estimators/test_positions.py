"""Positions that an output uses."""

import torch
from hypothesis import given

from randbp.estimators.positions import used_positions
from randbp.functional import conv_spec
from tests.cases import Case, cases


@given(case=cases(largest=8))
def test_every_position_that_an_output_uses_is_named_once(case: Case) -> None:
    x, weight, _ = case.tensors()
    spec = conv_spec(x, weight, **case.geometry)
    grad = torch.autograd.grad(case.native(x, weight, None).sum(), x)[0]  # all kernel entries are positive
    used = used_positions(spec, x.device).tolist()
    met = set(grad[0].sum(0).flatten().nonzero().flatten().tolist())
    assert len(set(used)) == len(used) and met <= set(used)
    if max(spec.dilation, default=1) == 1 and max(spec.stride, default=1) == 1:
        assert set(used) == met
