"""Functions that PyTorch writes in Python are lean inside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp._torch.hooks import written_out
from randbp.diagnostics import memory_report

from .same import assert_same, lean, values_and_grads
from .test_rounded import is_unbiased

IMAGES = torch.randn(3, 6, 16, 17, generator=torch.Generator().manual_seed(0)).requires_grad_()
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "local response": lambda x: F.local_response_norm(x, 3, alpha=0.5),
    "softmin": lambda x: F.softmin(x, dim=1),
    "power pooling": lambda x: F.lp_pool2d(x.abs(), 3.0, 2, stride=1),
    "triplets with a distance": lambda x: F.triplet_margin_with_distance_loss(
        x.flatten(1), x.flatten(1).flip(0), x.flatten(1).roll(1, 0), distance_function=F.pairwise_distance
    ),
    "taxicab units": lambda x: F.normalize(x, p=1, dim=2),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_unbiased(name: str) -> None:
    is_unbiased(FUNCTIONS[name], (IMAGES,), bits=3, draws=200)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_whole_is_held(name: str) -> None:
    def held(level: Any) -> float:
        return memory_report(lean(lambda x: FUNCTIONS[name](x * 1), level, 4), IMAGES).held_bytes

    assert held(True) < 0.35 * held(False)
    assert_same(values_and_grads(lean(FUNCTIONS[name]), IMAGES), values_and_grads(FUNCTIONS[name], IMAGES))


def test_what_is_not_written_in_python_is_left_alone() -> None:
    assert written_out(torch.mul) is None and written_out(lambda x: x) is None
