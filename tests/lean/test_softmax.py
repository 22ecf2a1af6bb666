"""Softmax, its logarithm and unit vectors hold a few bits, give PyTorch's values, and its gradients on average."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from randbp.codecs import Blocks

from .same import lean, values_and_grads
from .test_norms import FORMATS
from .test_rounded import is_unbiased

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, dim=-1),
    "softmax over the first": lambda x: torch.softmax(x, 0),
    "softmax over the middle": lambda x: x.softmax(1),
    "softmax of a module": lambda x: torch.nn.Softmax(dim=-2)(x),
    "log-softmax": lambda x: F.log_softmax(x, -1),
    "log-softmax over the first": lambda x: torch.log_softmax(x, dim=0),
    "log-softmax over the middle": lambda x: x.log_softmax(1),
    "unit vectors": lambda x: F.normalize(x, dim=-1),
    "unit vectors over the middle": F.normalize,
    "some short vectors": lambda x: F.normalize(x, 2.0, -1, eps=float(x.detach().norm(dim=-1).median())),
}


def logits(*shape: int) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))).requires_grad_()


@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_unbiased(name: str, bits: int) -> None:
    is_unbiased(FUNCTIONS[name], (logits(20, 7, 33),), bits, draws=200)


@pytest.mark.parametrize("name", ["softmax", "unit vectors"])
def test_gradients_are_unbiased_only_by_a_correction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blocks, "variances", lambda self, scales, count: torch.zeros(count))
    with pytest.raises(AssertionError, match="gradient 1: z"):
        is_unbiased(FUNCTIONS[name], (logits(20, 7, 33),), bits=1, draws=200)


@pytest.mark.parametrize("format", [*FORMATS, "large", "dtype"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_formats(name: str, format: str) -> None:
    function, x = FUNCTIONS[name], logits(*((4, 9, 12, 20) if format != "large" else (40, 50, 120))).detach()
    if format == "dtype" and "max" in name:
        function = lambda x: (F.log_softmax if "log" in name else F.softmax)(x, 1, dtype=torch.float64)  # noqa: E731
    x = FORMATS.get(format, Tensor.contiguous)(x).requires_grad_()
    exact, ours = values_and_grads(function, x), values_and_grads(lean(function, True, 8), x)
    for mine, other, tolerance in zip(ours, exact, (0, 0.1), strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        assert (mine - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("log", [False, True])
def test_rows_that_are_masked_altogether_leave_others_alone(log: bool) -> None:
    x = logits(8, 16, 64)
    hidden = torch.zeros(8, 16, 64, dtype=torch.bool)
    hidden[3, 5], hidden[:, :, ::3] = True, True

    def attention(x: Tensor) -> Tensor:
        y = (F.log_softmax if log else F.softmax)(x.masked_fill(hidden, -torch.inf), -1)
        return y.masked_fill(hidden, 0)

    (_, exact), (_, ours) = values_and_grads(attention, x), values_and_grads(lean(attention, True, 8), x)
    assert exact.isfinite().all() and ours.isfinite().all()
    assert (ours - exact).norm() < 0.1 * exact.norm() and bool((ours[hidden] == 0).all())


def test_other_calls_are_pytorchs(recwarn: pytest.WarningsRecorder) -> None:
    large = logits(64, 64)
    for x in (large, large[:8] * 1, large.detach()):
        assert type(lean(FUNCTIONS["softmax"], True)(x).grad_fn) is type(FUNCTIONS["softmax"](x).grad_fn)
    assert type(lean(FUNCTIONS["softmax"], "exact")(large * 1).grad_fn).__name__ == "SoftmaxBackward0"
    assert type(lean(lambda x: F.softmax(x), True)(large * 1).grad_fn).__name__ == "SoftmaxBackward0"
    with pytest.raises(IndexError, match="Dimension out of range"):
        lean(lambda x: F.softmax(x, 5), True)(large * 1)
    with torch.no_grad():
        assert lean(FUNCTIONS["softmax"], True)(large * 1).grad_fn is None
