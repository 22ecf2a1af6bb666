"""Normalisations take inputs and output gradients however they lie in memory, at all sizes around their thresholds."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from randbp import Exact, kernels
from randbp.kernels import planes, row_norm

from .same import lean, values_and_grads


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def sliced(dim: int) -> Any:
    def cut(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], dim).narrow(dim, 0, x.shape[dim])

    return cut


def expanded(*dims: int) -> Any:
    """All entries along some dimensions are the first one."""

    def expand(x: Tensor) -> Tensor:
        for dim in dims:
            x = x.narrow(dim, 0, 1)
        return x

    return lambda x: expand(x).expand(x.shape)


FORMATS = {
    "contiguous": Tensor.contiguous,
    "channels last": channels_last,
    "transposed": transposed,
    "part of the batch": sliced(0),
    "part of the channels": sliced(1),
    "part of the columns": sliced(-1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one example": expanded(0),
    "one channel": expanded(1),
    "one column": expanded(-1),
    "one position": lambda x: x[(..., *[slice(1)] * (x.dim() - 2))].expand(x.shape),
    "one number": lambda x: x.flatten()[0].expand(x.shape),
}

NORMS = {
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
    "group": lambda x, w, b: F.group_norm(x, 2, w, b),
    "instance": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    "layer": lambda x, w, b: F.layer_norm(x, x.shape[2:]),
    "layer, channels": lambda x, w, b: F.layer_norm(x.movedim(1, -1), w.shape, w, b).movedim(-1, 1),
    "rms": lambda x, w, b: F.rms_norm(x.movedim(1, -1), w.shape, w).movedim(-1, 1),
}


def gradients(function: Any, x: Tensor, parameters: list[Tensor], grad: Tensor) -> list[Tensor]:
    x = (x * 1 if 0 in x.stride() else x).detach().requires_grad_()  # PyTorch's own layers take no repeated entries
    leaves = [x, *(p.clone().requires_grad_() for p in parameters)]
    y = function(*leaves)
    found = torch.autograd.grad(y, leaves, grad, allow_unused=True)
    return [y.detach(), *(g for g in found if g is not None)]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(NORMS)),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(sorted(FORMATS)),
    st.tuples(st.integers(2, 5), st.sampled_from([2, 4, 32, 34]), st.lists(st.integers(2, 9), min_size=1, max_size=3)),
    st.sampled_from([16, 40, 150, 1000, 2**17]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_inputs_and_output_gradients_may_lie_in_memory_in_any_way(
    name: str, of_input: str, of_grad: str, shape: tuple[int, int, list[int]], stretch: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    size = (shape[0], shape[1], *shape[2])
    x, grad = (torch.randn(size, dtype=dtype, generator=generator) for _ in range(2))
    x, grad = FORMATS[of_input](x), FORMATS[of_grad](grad)
    parameters = [torch.randn(shape[1], dtype=dtype, generator=generator) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes, "PIECE", stretch)
        patch.setattr(row_norm, "PIECE", stretch)
        ours = gradients(lean(NORMS[name], True, bits=8), x, parameters, grad)
        with kernels.use("reference"):
            dense = gradients(lean(NORMS[name], True, bits=8), x, parameters, grad.contiguous())
    exact = gradients(NORMS[name], x, parameters, grad.contiguous())
    assert torch.equal(ours[0], exact[0]) and len(ours) == len(exact)
    largest = 4e-4 if of_input.startswith("one") else 1e-4  # where deviations are 0, gradients grow by 1e-5**-0.5
    for mine, same, other in zip(ours, dense, exact, strict=True):
        torch.testing.assert_close(mine, same, rtol=1e-4, atol=largest)
        assert (mine - other).norm() <= 0.05 * (other.norm() + grad.norm())


@pytest.mark.parametrize("of_grad", ["contiguous", "channels last", "part of the channels", "one position"])
@pytest.mark.parametrize("size", [(2, 64, 45, 45), (1, 64, 46, 46), (3, 2, 5, 165, 165)])
def test_examples_around_the_size_of_a_stretch(size: tuple[int, ...], of_grad: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(size, generator=generator) for _ in range(2))
    parameters = [torch.ones(size[1]), torch.zeros(size[1])]
    for name in ("batch", "group", "instance"):
        ours = gradients(lean(NORMS[name], True, bits=8), x, parameters, FORMATS[of_grad](grad))
        # PyTorch's own instance_norm of one example is wrong for output gradients that are channels last.
        exact = gradients(NORMS[name], x, parameters, FORMATS[of_grad](grad).contiguous())
        for mine, other in zip(ours, exact, strict=True):
            assert (mine - other).norm() <= 0.02 * other.norm() + 0.02 * grad.norm()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(64), nn.GroupNorm(8, 64), nn.InstanceNorm2d(64, affine=True)])
def test_a_norm_in_a_channels_last_network(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(64, 8, 3))
    x = torch.randn(2, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    expected = model(x)
    expected.square().sum().backward()
    exact = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with randbp.randomize(model, Exact(), lean=True, bits=8):
        y = model(x)
        torch.cat([y, y], 1).square().sum().div(2).backward()
    assert torch.equal(y, expected)
    for p, other in zip(model.parameters(), exact, strict=True):
        assert (p.grad - other).norm() <= 0.05 * other.norm() + 1.0


def test_a_bias_without_a_weight_has_its_gradient() -> None:
    x, bias = torch.randn(64, 96).requires_grad_(), torch.randn(96).requires_grad_()

    def norm(x: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (96,), None, bias)

    ours, theirs = values_and_grads(lean(norm, True), x, bias), values_and_grads(norm, x, bias)
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[2], theirs[2])
