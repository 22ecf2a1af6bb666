"""KeepRateSchedule in a real Trainer."""

from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from randbp import Exact, Importance, Rounding, Spatial
from randbp.callbacks import KeepRateSchedule, TensorDropout, VarianceControl
from randbp.randomize.layers import layer_state
from tests.callbacks.digits_training import Digits, train


class Rates(Callback):
    """Record the keep rate of the layers in each step."""

    def __init__(self) -> None:
        self.weight: list[float] = []
        self.input: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = layer_state(pl_module.net[3])
        self.weight.append(state.weight_vjp.keep)
        self.input.append(state.input_vjp.keep)


def own(fraction: float) -> float:
    return 1 / (1 + fraction)


@pytest.mark.parametrize(
    ("schedule", "meant"),
    [
        ("constant", lambda t: 0.25),
        ("linear", lambda t: 0.25 + 0.5 * t),
        ("cosine", lambda t: 0.75 - 0.5 * (1 + cos(pi * t)) / 2),
        ("step", lambda t: 0.25 if t < 0.5 else 0.75),
        ("warm-up", lambda t: 0.25 + 0.5 * min(1, t / 0.5)),
        (own, own),
    ],
)
def test_rates_follow_the_schedule(tmp_path: Path, schedule: Any, meant: Any) -> None:
    rates = Rates()
    scheduled = KeepRateSchedule(schedule, start=0.25, end=0.75)
    train(tmp_path, scheduled, TensorDropout(Spatial(0.5), Spatial(0.5)), rates)
    assert rates.weight == rates.input == pytest.approx([meant(step / 16) for step in range(16)])


def test_layers_vjp_and_every_choose_what_changes_and_when(tmp_path: Path) -> None:
    rates = Rates()
    train(
        tmp_path,
        TensorDropout(Rounding(8, Spatial(0.5)), Spatial(0.5)),
        KeepRateSchedule(every=4, vjp="weight_vjp"),
        rates,
    )
    assert rates.weight == pytest.approx([(0.25 + 0.75 * (step // 4 * 4) / 16) / 4 for step in range(16)])
    assert set(rates.input) == {0.5}
    rates = Rates()
    train(tmp_path, TensorDropout(Spatial(0.5)), KeepRateSchedule("constant", layers="net.0"), rates)
    assert set(rates.weight) == {0.5}


def test_a_resumed_training_is_identical_and_the_model_is_its_own_again(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [TensorDropout(Spatial(0.5)), KeepRateSchedule("cosine", 0.25, 1.0)]

    whole, losses = train(tmp_path, *callbacks(), max_epochs=2)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    train(tmp_path, *callbacks(), save, enable_checkpointing=True, max_epochs=2)
    again, rest = train(tmp_path, *callbacks(), ckpt_path=tmp_path / "step=8.ckpt", max_epochs=2)
    assert rest == losses[8:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert "_randbp" not in vars(again.net[3])


def test_a_model_randomised_by_hand_gets_its_estimators_back(tmp_path: Path) -> None:
    from randbp import randomize

    module = Digits()
    handle = randomize(module, Spatial(0.25))
    train(tmp_path, KeepRateSchedule("linear", 0.5, 1.0), module=module)
    assert set(handle.keep_rates.values()) == {0.25}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sine"}, "schedule='sine': expected one of constant, linear"),
        ({"start": 0}, "start=0: expected a number"),
        ({"end": 1.5}, "end=1.5"),
        ({"at": True}, "at=True"),
        ({"vjp": "bias"}, "vjp='bias'"),
        ({"every": 0}, "every=0"),
        ({"layers": []}, r"layers=\[\]"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeepRateSchedule(**options)


def test_what_only_the_training_shows_is_refused_then(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a layer with an estimator that has a keep rate"):
        train(tmp_path, TensorDropout(Rounding(4), Exact()), KeepRateSchedule())
    with pytest.raises(ValueError, match=r"schedule\(0\)=2: expected a number in \(0, 1\]"):
        train(tmp_path, TensorDropout(Spatial(0.5)), KeepRateSchedule(lambda fraction: 2))
    with pytest.raises(ValueError, match="the training has no end"):
        train(tmp_path, TensorDropout(Spatial(0.5)), KeepRateSchedule(), max_epochs=-1)


@pytest.mark.parametrize("first", [0, 1])
def test_two_callbacks_do_not_choose_one_rate(tmp_path: Path, first: int) -> None:
    def pair(vjp: Any, budgeted: Any) -> list[Callback]:
        callbacks = [KeepRateSchedule(vjp=vjp), VarianceControl()]
        return [TensorDropout(Importance(0.5), budgeted), callbacks[first], callbacks[1 - first]]

    with pytest.raises(ValueError, match=r"chooses weight_vjp of layer 'net\.0', too; expected one callback"):
        train(tmp_path, *pair(None, Importance(0.5)))
    train(tmp_path, *pair("input_vjp", Spatial(0.5)))  # each VJP has its own
