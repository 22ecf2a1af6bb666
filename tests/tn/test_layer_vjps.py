"""PyTorch's own VJPs, one at a time."""

from typing import Any

import pytest
import torch

from randbp import tn
from randbp.diagnostics import StepPeak
from randbp.tn.execute.layer_vjps import native_input_vjp


@pytest.mark.parametrize(
    ("batch", "kernel", "stride", "padding", "groups"),
    [(16, 3, 1, 1, 1), (13, 3, 1, 1, 1), (19, (1, 4), (1, 3), (0, 1), 4), (16, 1, 1, 0, 1), (17, 5, 2, 0, 32)],
)
def test_a_large_input_gradient_is_pytorchs_in_less_memory(
    batch: int, kernel: Any, stride: Any, padding: Any, groups: int
) -> None:
    spec = tn.ConvSpec((batch, 32, 72, 72), 32, kernel, stride, padding, groups=groups)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(spec.weight_shape, generator=generator)
    output_grad = torch.randn(spec.output_shape, generator=generator)
    with StepPeak("cpu") as peak:
        found = native_input_vjp(output_grad, weight, spec)
    assert peak.bytes < 1.9 * found.nbytes
    exact = torch.nn.grad.conv2d_input(spec.input_shape, weight, output_grad, stride, padding, groups=groups)
    torch.testing.assert_close(found, exact)
    last = output_grad.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(native_input_vjp(last, weight, spec), exact)
