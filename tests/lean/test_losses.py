"""Cross-entropy holds rounded probabilities; values are PyTorch's, and gradients on average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp.diagnostics import memory_report

from .same import assert_same, lean, values_and_grads
from .test_rounded import is_unbiased

CLASSES = 40


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).requires_grad_()


def classes(x: Tensor) -> Tensor:
    found = torch.randint(CLASSES, (len(x), *x.shape[2:]), generator=torch.Generator().manual_seed(4))
    found.view(-1)[::7] = 5
    return found


WEIGHTS = torch.linspace(0.1, 2, CLASSES)
INPUTS = {"rows": logits(120, CLASSES), "signals": logits(4, CLASSES, 31), "images": logits(3, CLASSES, 6, 7)}
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "each": {"reduction": "none"},
    "weights": {"weight": WEIGHTS},
    "ignored": {"ignore_index": 5},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", INPUTS)
def test_negative_log_likelihood_is_exact(shape: str, options: str) -> None:
    def function(x: Tensor) -> Tensor:
        given = {**OPTIONS[options], **({"weight": WEIGHTS.to(x.dtype)} if options == "weights" else {})}
        return F.nll_loss(x, classes(x), **given)

    for dtype in (torch.float64, torch.float32):
        # (Of images whose entries lie in another order PyTorch refuses the gradient.)
        other = INPUTS[shape].mT.contiguous().mT if shape == "signals" else INPUTS[shape].flip(0)
        for x in (INPUTS[shape], other):
            given = x.detach().to(dtype).requires_grad_()
            assert_same(values_and_grads(lean(function), given), values_and_grads(function, given))
    x = INPUTS[shape]
    plain, report = (memory_report(lean(lambda x: function(x * 1), level), x) for level in (False, "exact"))
    assert plain.held_bytes - report.held_bytes == x.nbytes


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", INPUTS)
def test_cross_entropy_is_unbiased(shape: str, options: str) -> None:
    is_unbiased(lambda x: F.cross_entropy(x, classes(x), **OPTIONS[options]), (INPUTS[shape],), bits=2, draws=150)


def test_bytes_held_and_values() -> None:
    x, target = logits(64, 512), torch.arange(64)

    def held(level: Any) -> float:
        return memory_report(lean(lambda x: F.cross_entropy(x * 1, target), level, 4), x).held_bytes / x.nbytes

    assert held(False) >= 1 and held(True) <= 4 / 32 + 8 / 1024 + 1e-3
    for dtype in (torch.float64, torch.bfloat16):
        given = x.detach().to(dtype).requires_grad_()
        function: Callable[[Tensor], Tensor] = lambda x: F.cross_entropy(x, target)  # noqa: E731
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            (mine, grad), (other, exact) = (values_and_grads(f, given) for f in (lean(function, True, 8), function))
        assert mine.dtype == other.dtype and torch.equal(mine, other)
        assert grad.dtype == exact.dtype and (grad - exact).norm() <= 0.03 * exact.norm()


def test_other_calls_are_pytorchs() -> None:
    x = logits(64, 512)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.cross_entropy(x, torch.zeros(64, dtype=torch.long), label_smoothing=0.1),
        lambda x: F.cross_entropy(x, torch.full((64, 512), 1 / 512)),
        lambda x: F.cross_entropy(x[0], torch.tensor(3)),
    ]
    for call in calls:
        assert_same(values_and_grads(lean(call, "exact"), x), values_and_grads(call, x))
    assert_same(values_and_grads(lean(calls[-1], True), x), values_and_grads(calls[-1], x))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_absolute_errors_are_exact_and_held_in_two_bits(reduction: str, dtype: torch.dtype) -> None:
    x = logits(64, 512).detach().to(dtype).round(decimals=1).requires_grad_()
    y = x.detach().flip(0).requires_grad_()

    def function(x: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(x, y, reduction=reduction)

    assert_same(values_and_grads(lean(function), x, y), values_and_grads(function, x, y))
    assert memory_report(lean(lambda x, y: function(x * 1, y * 1)), x, y).held_bytes == x.numel() // 4
