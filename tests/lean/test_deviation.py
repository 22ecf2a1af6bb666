"""Variances hold their input in few bits, norms their derivative; values are PyTorch's, and gradients on average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp.diagnostics import memory_report

from .same import lean, values_and_grads
from .test_rounded import is_unbiased

FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "var": lambda x: x.var(),
    "var of rows": lambda x: torch.var(x, -1, correction=0, keepdim=True),
    "std": lambda x: x.std(),
    "std of columns": lambda x: torch.std(x, dim=0),
    "var_mean": lambda x: sum(torch.var_mean(x, (0, 1))),
    "std_mean": lambda x: sum(torch.std_mean(x, 1)),
    "norm": lambda x: x.norm(),
    "norm of rows": lambda x: torch.norm(x, dim=-1, keepdim=True),
    "norm by number": lambda x: x.norm(2, (1, 2)),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=(0, 2)),
    "linalg.norm": lambda x: torch.linalg.norm(x, dim=1),
    "distances by pairs": (lambda x: F.pairwise_distance(x, x.flip(0).detach(), keepdim=True)),
    "linalg.norm by number": lambda x: torch.linalg.norm(x, 2, 1),
}


def sample(*shape: int) -> Tensor:
    return (0.3 + torch.randn(*shape, generator=torch.Generator().manual_seed(4))).requires_grad_()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_unbiased(name: str) -> None:
    is_unbiased(FUNCTIONS[name], (sample(20, 13, 18),), bits=2, draws=200)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bytes_held(name: str) -> None:
    x = sample(32, 32, 64)

    def held(level: Any) -> int:
        return memory_report(lean(lambda x: FUNCTIONS[name](x * 1), level, 4), x).held_bytes

    result = 32 * 64 * 4
    assert x.nbytes <= held(False) == held("exact") <= x.nbytes + result
    assert 0 <= held(True) - x.numel() * (4 / 8 + 8 / 256) <= result + 8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_formats(name: str) -> None:
    for x in (sample(20, 13, 18).transpose(0, 2), sample(20, 13, 19)[:, :, 1:], sample(20, 13, 18).double()):
        given = x.detach().requires_grad_()
        exact, ours = values_and_grads(FUNCTIONS[name], given), values_and_grads(lean(FUNCTIONS[name], True, 8), given)
        for mine, other, tolerance in zip(ours, exact, (0, 0.02), strict=True):
            assert mine.dtype == other.dtype and (mine - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.norm(1),
        lambda x: x.norm(torch.inf, 1),
        lambda x: torch.cdist(x, x.flip(1), p=1.0),
        lambda x: torch.linalg.norm(x[0], 2),  # the greatest singular value
        lambda x: torch.linalg.norm(x[0], "nuc"),
        lambda x: x.norm("nuc", (0, 1)),
    ],
)
def test_other_norms_are_not_linear(function: Callable[[Tensor], Tensor]) -> None:
    x = sample(2, 80, 81)
    (_, exact), (_, ours) = values_and_grads(function, x), values_and_grads(lean(function, True, 1), x)
    assert torch.equal(ours, exact)


DISTANCES: dict[str, Callable[..., Tensor]] = {
    "products": torch.cdist,
    "no products": lambda x, y: torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"),
    "of rows to themselves": lambda x, y: torch.cdist(x, x) + y[:, :1],
}


@pytest.mark.parametrize("name", DISTANCES)
def test_all_distances(name: str) -> None:
    x, y = sample(90, 91), sample(91, 92)[1:, 1:].detach().requires_grad_()
    is_unbiased(DISTANCES[name], (x, y), bits=2, draws=200)

    def held(level: Any) -> int:
        return memory_report(lean(lambda x, y: DISTANCES[name](x * 1, y * 1), level, 4), x, y).held_bytes

    factors, result = 1 if "themselves" in name else 2, 90 * 90 * 4
    assert held(False) == held("exact") >= factors * x.nbytes + result
    assert 0 <= held(True) - factors * x.numel() * (4 / 8 + 8 / 256) - result <= 512 + factors * 8
