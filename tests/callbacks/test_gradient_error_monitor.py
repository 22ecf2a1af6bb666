"""GradientErrorMonitor in a real Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from randbp import Channels, Exact, Importance, Spatial
from randbp.callbacks import GradientErrorMonitor, TensorDropout
from tests.callbacks.digits_training import Digits, digits, train


class Metrics(Callback):
    """Record what was logged, and the gradient at a batch."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.found.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize(
    "dropout", [lambda: TensorDropout(Spatial(0.25), lean=True), lambda: TensorDropout(Importance(0.5))]
)
def test_a_training_is_bit_for_bit_what_it_is_without(tmp_path: Path, dropout: Any) -> None:
    plain, losses = train(tmp_path, dropout(), busy=True)
    watched, same = train(tmp_path, dropout(), GradientErrorMonitor(every=3), busy=True)
    assert same == losses and watched.seen == plain.seen and watched.accuracies == plain.accuracies
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_errors_of_channels_are_what_theory_says(tmp_path: Path) -> None:
    metrics = Metrics()
    keep = TensorDropout(Channels(0.25), layers="net.3")
    train(tmp_path, keep, GradientErrorMonitor(every=2, draws=400), metrics, max_steps=3)
    found = metrics.found[-1]
    # Two of eight channels, four times as large: the squared error is 3 ‖g‖², and the length of an estimate 2 ‖g‖.
    assert found["gradient_error/net.3/error"] == pytest.approx(3**0.5, rel=0.1)
    assert found["gradient_error/net.3/cosine"] == pytest.approx(0.5, rel=0.1)
    assert 0 < found["gradient_error/all/error"] < 3**0.5
    ratio = found["gradient_error/net.3/noise_ratio"]
    assert 0 < ratio < float("inf") and metrics.found[0].keys() == set()


def test_exact_layers_have_no_error(tmp_path: Path) -> None:
    metrics = Metrics()
    train(tmp_path, TensorDropout(Exact()), GradientErrorMonitor(every=2), metrics, max_steps=2)
    assert metrics.found[-1]["gradient_error/net.0/error"] == 0
    assert metrics.found[-1]["gradient_error/net.0/cosine"] == pytest.approx(1)


class Still(Callback):
    """Leave the parameters as they are."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.grad = None


def test_noise_is_that_of_two_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, metrics, grads = Digits(), Metrics(), []
    for number in (0, 1):
        x, y = (tensor[number * 64 : number * 64 + 64] for tensor in digits().dataset.tensors)  # type: ignore[attr-defined]
        loss = nn.functional.cross_entropy(module.net(x), y)
        grads.append(torch.autograd.grad(loss, module.net[3].weight)[0])
    dropout, monitor = TensorDropout(Channels(0.5), layers="net.3"), GradientErrorMonitor(every=5)
    train(tmp_path, dropout, monitor, metrics, Still(), max_steps=2)
    found, noise = metrics.found[-1], float((grads[0] - grads[1]).square().sum() / 2)
    error = found["gradient_error/net.3/error"] * float(grads[1].norm())
    assert found["gradient_error/net.3/noise_ratio"] == pytest.approx(error / noise**0.5, rel=1e-3)


class Counting(Digits):
    """Another loss at each call of the training step."""

    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.calls += 1
        return super().training_step(batch, batch_idx) * self.calls


def test_all_passes_start_from_the_same_attributes(tmp_path: Path) -> None:
    module, metrics = Counting(), Metrics()
    train(tmp_path, TensorDropout(Exact()), GradientErrorMonitor(every=2), metrics, module=module, max_steps=4)
    assert metrics.found[-1]["gradient_error/all/error"] == 0
    assert module.calls == 4


def test_wrong_arguments_are_refused_in_one_line(tmp_path: Path) -> None:
    for options, message in (({"every": 0}, "every=0"), ({"draws": 1.5}, "draws=1.5"), ({"seed": "a"}, "seed='a'")):
        with pytest.raises(ValueError, match=message):
            GradientErrorMonitor(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer is randomised"):
        train(tmp_path, GradientErrorMonitor())
    module = Digits()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic_optimization=False"):
        train(tmp_path, TensorDropout(), GradientErrorMonitor(), module=module)
    assert GradientErrorMonitor(draws=2).every == 200
