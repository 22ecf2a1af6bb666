"""VarianceControl in a real Trainer."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from randbp import Channels, Importance, Spatial, randomize
from randbp.callbacks import TensorDropout, VarianceControl
from randbp.randomize.layers import layer_state
from tests.callbacks.digits_training import Digits, Losses, digits, train


def half(unit: Any = "positions", input_keep: float = 0.5) -> TensorDropout:
    return TensorDropout(Importance(0.5, unit), Importance(input_keep, unit))


class Logged(Callback):
    """Record what was logged, and the rates of a layer."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.rates: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        state = layer_state(pl_module.net[3])
        self.rates.append((state.weight_vjp.keep, state.input_vjp.keep))


def realised(control: VarianceControl) -> float:
    later = control.history[4:]
    return sum(each["added"] for each in later) / sum(each["minibatch"] for each in later)


@pytest.mark.parametrize(
    ("budget", "dropout"),
    [
        (0.05, half),
        (0.2, half),
        (0.05, lambda: TensorDropout(Importance(0.5))),
        (0.1, lambda: half(input_keep=0.75)),
        (0.1, lambda: TensorDropout(Importance(0.5, bits=4), Importance(0.5))),
    ],
    ids=["both", "large", "weight", "apart", "codes"],
)
def test_what_sampling_adds_is_the_budget(tmp_path: Path, budget: float, dropout: Any) -> None:
    control = VarianceControl(budget, every=8)
    train(tmp_path, dropout(), control, data=digits(), max_epochs=10)
    assert len(control.history) == 38
    assert 0.7 * budget < realised(control) < 1.3 * budget


def test_the_training_is_changed_through_the_rates_alone(tmp_path: Path) -> None:
    """With a budget so large that all rates are the least, it is the training with these rates from then on."""

    class Least(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            for number in (0, 3, 6):
                state = layer_state(pl_module.net[number])
                state.weight_vjp = state.input_vjp = Importance(1 if trainer.global_step < 1 else 1 / 16)

    control = VarianceControl(1e6, every=5)
    plain, losses = train(tmp_path, half(), Least(), busy=True)
    controlled, same = train(tmp_path, half(), control, busy=True)
    assert {rate for own in control.rates.values() for rate in own.values()} == {1 / 16}
    assert same == losses and controlled.seen == plain.seen and controlled.accuracies == plain.accuracies
    for name, value in plain.state_dict().items():
        assert torch.equal(value, controlled.state_dict()[name]), name


def test_a_tiny_budget_makes_layers_exact_and_others_stay_as_they_are(tmp_path: Path) -> None:
    logged = Logged()
    control = VarianceControl(1e-9, every=4)
    others = TensorDropout(Channels(0.5), layers="net.3")
    train(tmp_path, TensorDropout(Importance(0.5), layers="net.6"), others, control, logged)
    assert control.rates == {"net.6": {"weight_vjp": 1.0}}
    assert set(logged.rates) == {(0.5, 1.0)}


def test_rates_and_ratio_are_logged_and_estimators_are_given_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, logged, control = Digits(), Logged(), VarianceControl(0.1, every=4)
    handle = randomize(module, Importance(0.5), Importance(0.5))
    train(tmp_path, control, logged, module=module)
    weight, input = (control.rates["net.3"][vjp] for vjp in ("weight_vjp", "input_vjp"))
    assert logged.found["keep_rate/net.3/weight_vjp"] == weight == input == logged.rates[-1][0]
    last = control.history[-1]
    assert logged.found["variance/added"] == pytest.approx(last["added"])
    assert logged.found["variance/minibatch"] == pytest.approx(last["minibatch"])
    assert logged.found["variance/ratio"] > 0 and "variance/along_ratio" in logged.found
    assert set(handle.keep_rates.values()) == {0.5}
    assert [each["batch"] for each in control.history] == [1, 2, 3, 4, 8, 12]
    assert logged.rates[0] == (1.0, 1.0) and logged.rates[1][0] < 1


def test_minibatch_variance_is_that_of_two_exact_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Digits()
    grads = []
    for number in (0, 1):
        x, y = (tensor[number * 64 : number * 64 + 64] for tensor in digits().dataset.tensors)  # type: ignore[attr-defined]
        loss = torch.nn.functional.cross_entropy(module.net(x), y)
        grads.append(torch.autograd.grad(loss, list(module.parameters())))
    expected = sum(float((a - b).double().square().sum()) for a, b in zip(*grads, strict=True)) / 2

    class Still(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for parameter in pl_module.parameters():
                parameter.grad = None

    torch.manual_seed(0)
    control = VarianceControl(0.1, every=2)
    train(tmp_path, half(), control, Still(), max_steps=2)
    assert control.history[0]["minibatch"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stop", [5, 6])  # between the two batches of a measurement, and after it
def test_a_resumed_training_is_identical(tmp_path: Path, stop: int) -> None:
    def callbacks() -> tuple[TensorDropout, VarianceControl]:
        return half(), VarianceControl(0.1, every=2)

    dropout, control = callbacks()
    whole, losses = train(tmp_path, dropout, control, data=digits(64 * stop), max_epochs=3)
    save = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    train(tmp_path, *callbacks(), save, data=digits(64 * stop), max_epochs=1, enable_checkpointing=True)
    dropout, again = callbacks()
    data = digits(64 * stop)
    resumed, rest = train(tmp_path, dropout, again, data=data, ckpt_path=tmp_path / "epoch=0.ckpt", max_epochs=3)
    assert rest == losses[stop:]
    assert again.history == control.history and again.rates == control.rates
    assert again.state_dict()["smooth"] == control.state_dict()["smooth"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class Write(Callback):
    """Write each rank's rates, history and weights."""

    def __init__(self, folder: Path, control: VarianceControl) -> None:
        self.folder, self.control = folder, control

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        weights = [parameter.detach() for parameter in pl_module.parameters()]
        found = self.control.rates, self.control.history, weights, os.getpid()
        torch.save(found, self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_decide_alike(tmp_path: Path) -> None:
    control = VarianceControl(0.1, every=3)
    train(tmp_path, half(), control, Write(tmp_path, control), strategy="ddp_spawn", devices=2, max_epochs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first[0] == second[0] and first[0].keys() == {"net.0", "net.3", "net.6"}
    assert first[1] == second[1] and len(first[1]) == 4
    assert all(torch.equal(left, right) for left, right in zip(first[2], second[2], strict=True))
    assert first[3] != second[3]


def test_whole_examples_are_controlled_too(tmp_path: Path) -> None:
    control = VarianceControl(0.3, every=8)
    train(tmp_path, half("examples"), control, data=digits(), max_epochs=6)
    assert 0.5 * 0.3 < realised(control) < 1.5 * 0.3


def test_a_batch_without_a_finite_gradient_changes_no_rate(tmp_path: Path) -> None:
    data = digits(256)
    data.dataset.tensors[0][:64] = torch.nan  # type: ignore[attr-defined]
    control = VarianceControl(0.1, every=2)
    train(tmp_path, half(), control, data=data, max_epochs=1)
    rates = {rate for own in control.rates.values() for rate in own.values()}
    assert rates == {1.0} and control.history == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget=0"),
        ({"budget": "a"}, "budget='a'"),
        ({"every": 0}, "every=0"),
        ({"draws": 0}, "draws=0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VarianceControl(**options)


def test_without_importance_there_is_nothing_to_control(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="VarianceControl: no layer has the estimator Importance"):
        train(tmp_path, TensorDropout(Spatial(0.5)), VarianceControl())
    assert VarianceControl().every == 200 and Losses().losses == []
