"""An entry that is infinite or NaN spoils nothing beside it: gradients are finite exactly where PyTorch's are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp import Rounding
from randbp.codecs import Uniform
from randbp.functional import conv

from .same import lean, values_and_grads

A, B = (torch.randn(64, 96, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
WRONG = {(0, 5): torch.inf, (3, 7): -torch.inf, (3, 8): torch.nan, (63, 95): torch.inf}
W = torch.randn(40, 96, generator=torch.Generator().manual_seed(2)).requires_grad_()


def spoilt(x: Tensor) -> Tensor:
    x = x.detach().clone()
    for place, value in WRONG.items():
        x[place] = value
    return x.requires_grad_()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "product": lambda a, b: a * b,
    "product in place": lambda a, b: (a * 1).mul_(b),
    "matrix product": lambda a, b: a @ b.mT,
    "einsum": lambda a, b: torch.einsum("ij,ij->i", a, b),
    "linear": lambda a, b: F.linear(a, W.detach().clone().requires_grad_()) + F.linear(b, W).sum(),
    "mse": lambda a, b: F.mse_loss(a, b),
    "mse, each": lambda a, b: F.mse_loss(a, b, reduction="none"),
    "smooth l1": lambda a, b: F.smooth_l1_loss(a, b, reduction="sum"),
    "kl": lambda a, b: F.kl_div(a.clamp(-1, 1), b.abs().clamp(min=0), reduction="sum"),
    "softmax": lambda a, b: F.softmax(a, 1) * b.detach(),
    "log_softmax": lambda a, b: F.log_softmax(a, 1) * b.detach(),
    "cross_entropy": lambda a, b: F.cross_entropy(a, torch.arange(64), reduction="none"),
    "gelu": lambda a, b: F.gelu(a),
    "tanh": lambda a, b: a.tanh() + b.sin(),
    "exp": lambda a, b: a.exp(),
    "square": lambda a, b: a.square(),
    "glu": lambda a, b: F.glu(a),
    "norm": lambda a, b: torch.linalg.vector_norm(a, dim=1),
    "std": lambda a, b: a.std(1),
    "var": lambda a, b: a.var(1),
    "normalize": lambda a, b: F.normalize(a, dim=1),
    "batch_norm": lambda a, b: F.batch_norm(a, None, None, training=True),
    "layer_norm": lambda a, b: F.layer_norm(a, (96,)),
    "quotient": lambda a, b: b / a,
    "logsumexp": lambda a, b: a.logsumexp(1),
    "sqrt": lambda a, b: a.sqrt(),
}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_finite_where_pytorchs_are(name: str, bits: int) -> None:
    for inputs in ((spoilt(A), B), (A, spoilt(B))):
        exact = values_and_grads(FUNCTIONS[name], *inputs)
        ours = values_and_grads(lean(FUNCTIONS[name], True, bits), *inputs)
        assert len(exact) == len(ours)
        for mine, other in zip(ours, exact, strict=True):
            assert torch.equal(mine.isfinite(), other.isfinite())


def test_a_zero_target_of_kl_div_leaves_others_alone() -> None:
    target = B.detach().softmax(1)
    target[4, 4] = 0
    target.requires_grad_()

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(x.log_softmax(1), target * 1, reduction="sum")

    exact, ours = values_and_grads(loss, A, target), values_and_grads(lean(loss, True), A, target)
    for mine, other in zip(ours, exact, strict=True):
        finite = other.isfinite()
        assert torch.equal(mine.isfinite(), finite)
        assert (mine - other)[finite].norm() < 0.2 * other[finite].norm()


def test_with_one_bit_the_whole_block_is_nan() -> None:
    x = torch.randn(2, 512)
    x[0, 3] = torch.nan
    decoded = Uniform(1, 512, dithered=True).decode(*Uniform(1, 512, dithered=True).encode(x, 5), 5)
    assert decoded[0, :256].isnan().all() and not decoded[0, 256:].isnan().any() and not decoded[1].isnan().any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_keeps_channels_apart(bits: int) -> None:
    # Blocks of 256 entries hold four channels of 8 x 8 each.
    x = torch.randn(3, 8, 8, 8, generator=torch.Generator().manual_seed(4))
    x[1, 2, 3, 3] = torch.inf
    weight = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    (exact,) = torch.autograd.grad(F.conv2d(x, weight)[:, :, :2].sum() + F.conv2d(x, weight)[1:].sum(), weight)
    y = conv(x, weight, weight_vjp=Rounding(bits))
    (ours,) = torch.autograd.grad(y[:, :, :2].sum() + y[1:].sum(), weight)
    assert torch.equal(ours.isfinite(), exact.isfinite()) and ours[:, [0, 1, 3, 4, 5, 6, 7]].isfinite().all()
