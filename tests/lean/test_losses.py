"""Cross-entropy holds rounded probabilities; values are PyTorch's, and gradients on average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, TensorDataset

import randbp
from randbp import Exact
from randbp.callbacks import TensorDropout
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


class Classifier(LightningModule):
    """Its loss is in the training step, outside of any module's forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.steps = nn.Linear(16, 300), []

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), torch.arange(64))
        self.steps.append(type(loss.grad_fn.next_functions[0][0]).__name__)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def beneath(loss: Tensor) -> str:
    """The operation below the last one."""
    return type(loss.grad_fn.next_functions[0][0]).__name__


PLAIN, LEAN = "LogSoftmaxBackward0", "_RowWiseBackward"


def test_a_loss_outside_of_the_model_is_lean_where_it_is_told() -> None:
    model, x, target = nn.Linear(16, 300), torch.randn(64, 16), torch.arange(64)
    exact = F.cross_entropy(model(x), target)
    (expected,) = torch.autograd.grad(exact, model.weight)
    with randbp.randomize(model, Exact(), layers="", lean=True, bits=8) as handle:
        assert beneath(F.cross_entropy(model(x), target)) == PLAIN
        with handle.lean():
            inside = F.cross_entropy(model(x), target)
        wrapped = [handle.lean()(criterion)(model(x), target) for criterion in (F.cross_entropy, nn.CrossEntropyLoss())]
        for loss in (inside, *wrapped):
            assert beneath(loss) == LEAN and torch.equal(loss, exact)
            (grad,) = torch.autograd.grad(loss, model.weight)
            assert 0 < (grad - expected).norm() < 0.02 * expected.norm()
        with torch.no_grad(), handle.lean():
            assert torch.equal(F.cross_entropy(model(x), target), exact)
        model.eval()
        with handle.lean():
            assert beneath(F.cross_entropy(model(x), target)) == PLAIN
        with pytest.raises(ZeroDivisionError), handle.lean():
            1 / 0  # noqa: B018
        assert _get_current_function_mode_stack() == []
        model.train()
    with handle.lean():  # which was removed
        assert beneath(F.cross_entropy(model(x), target)) == PLAIN


@pytest.mark.parametrize(
    ("lean", "expected"), [(False, PLAIN), ("exact", PLAIN), ({"": False, "*": True}, LEAN), ({"": False}, PLAIN)]
)
def test_its_level_is_that_of_the_model(lean: Any, expected: str) -> None:
    model = nn.Linear(16, 300)
    with randbp.randomize(model, Exact(), layers="", lean=lean) as handle, handle.lean():
        assert beneath(F.cross_entropy(model(torch.randn(64, 16)), torch.arange(64))) == expected


def test_the_report_says_how_to_reach_a_loss_outside_of_the_model() -> None:
    model, x = nn.Linear(16, 300), torch.randn(64, 16)

    def loss(y: Tensor) -> Tensor:
        return F.cross_entropy(y, torch.arange(64))

    with randbp.randomize(model, Exact(), layers="", lean=True) as handle:
        plain, lean_loss = (memory_report(model, x, loss=each) for each in (loss, handle.lean()(loss)))
    (row,) = (row for row in plain.rows if row.operation == "cross_entropy")
    assert row.module == "(outside the model)" and "with handle.lean()" in row.why
    assert lean_loss.held_bytes < 0.4 * plain.held_bytes
    assert not any("handle.lean" in row.why for row in memory_report(nn.Sequential(model, nn.GELU()), x).rows)


@pytest.mark.parametrize("level", [False, True])
def test_a_training_step_of_lightning_is_lean(level: bool) -> None:
    module = Classifier()
    callback = TensorDropout(Exact(), layers="net", lean=level)
    trainer = Trainer(
        max_steps=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(128, 16)), batch_size=64))
    assert module.steps == [LEAN if level else PLAIN] * 2 and "training_step" not in vars(module)
