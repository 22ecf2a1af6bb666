"""Slopes with poles: gradients at four bits, with inputs of which half are ReLU's zeros."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from .same import lean, values_and_grads

X = torch.randn(4, 8, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()

WITH_ZEROS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": torch.sqrt,
    "power of 0.3": lambda x: x**0.3,
    "power of -0.5": lambda x: (x + 1e-6) ** -0.5,
    "rsqrt": lambda x: torch.rsqrt(x + 1e-6),
    "log": lambda x: (x + 1e-6).log(),
    "log2": lambda x: (x + 1e-6).log2(),
    "log1p": torch.log1p,
    "entr": torch.special.entr,
    "acosh": lambda x: torch.acosh(x + 1),
    "quotient": lambda x: x.flip(0) / (x + 1e-3),
    "atan2": lambda x: torch.atan2(x, x.flip(0) + 1e-6),
    "xlogy": lambda x: torch.xlogy(x, x + 1e-6),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "norm of pairs": lambda x: torch.linalg.vector_norm(x.unflatten(1, (4, 2)), dim=2),
    "cubic norm": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
    "norm of the lot": lambda x: x.norm(),
    "hypot": lambda x: torch.hypot(x, x.flip(0)),
    "std": lambda x: x.flatten(2).unflatten(2, (-1, 2)).std(3),
    "normalize": lambda x: F.normalize(x, dim=1),
    "lp_pool1d": lambda x: F.lp_pool1d(x.flatten(0, 1), 2.0, 2),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2.0, 2),
    "lp_pool2d, cubic, overlapping": lambda x: F.lp_pool2d(x, 3.0, 3, 2),
    "lp_pool3d": lambda x: F.lp_pool3d(x.unsqueeze(0), 2.0, 2),
    "prod": lambda x: (x + 0.1).prod(1),
}


@pytest.mark.parametrize("name", WITH_ZEROS)
def test_a_pole_does_not_set_the_step_of_others(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return WITH_ZEROS[name](F.relu(x))

    (value, exact), (same, ours) = values_and_grads(function, X), values_and_grads(lean(function, True, 4), X)
    assert torch.equal(value, same) and torch.equal(exact.isfinite(), ours.isfinite())
    finite = exact.isfinite()
    assert (ours - exact)[finite].norm() < 0.3 * exact[finite].norm()
