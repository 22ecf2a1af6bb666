"""Measurements on real gradients against formulas and a whole backward pass; a model that is left as it was."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import randbp
from randbp import Batch, Channels, Exact, Rounding, Spatial
from randbp.callbacks import TensorDropout
from randbp.diagnostics import gradient_error
from randbp.diagnostics.objective import make_objective
from randbp.tune import LayerOptions
from randbp.tune.measure import measure


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    body = (nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), *between, nn.Conv2d(8, 8, 3, stride=2), nn.SiLU())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(72, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(16) % 3


def measured(model: nn.Module, *candidates: randbp.Estimator, **options: Any) -> tuple[LayerOptions, ...]:
    return measure(model, [batch()], make_objective(model, None), candidates, **{"rounds": 0, **options})


def test_errors_are_those_of_a_whole_backward_pass() -> None:
    """Each layer alone draws what it draws in the model, so the numbers agree to rounding."""
    model, chosen = network(), {"0": Spatial(0.25), "2": Channels(0.25)}
    layers = measured(model, *chosen.values(), draws=6, seed=2)
    whole = gradient_error(model, batch(), weight_vjp=chosen, draws=6, seed=2)
    for layer, row in zip(layers, whole.rows, strict=True):
        option = next(o for o in layer.candidates if o.estimator == chosen[layer.name])
        assert layer.name == row.name
        assert layer.norm_square == pytest.approx(row.norm**2)
        assert option.variance / layer.norm_square == pytest.approx(row.variance.estimate)
        half = (row.variance.high - row.variance.low) / 2 / 2.5706  # Student's quantile with 5 degrees of freedom
        assert option.spread / layer.norm_square == pytest.approx(half, rel=1e-3)


def test_bytes_are_those_of_the_sketch() -> None:
    first, second = measured(network(), Spatial(0.25), Batch(0.5), Rounding(8))
    assert first.exact.held_bytes == 16 * 4 * 64 * 8 and second.exact.held_bytes == 16 * 8 * 64 * 8
    quarter, half, _ = (option.held_bytes - 8 for option in first.candidates)  # 8: the seed
    assert half == first.exact.held_bytes / 2 and quarter == first.exact.held_bytes / 4
    assert first.shared_bytes == second.shared_bytes == 0 and second.held_by == ()


def test_who_else_holds_the_input_is_named() -> None:
    model = network()
    model[1] = nn.ReLU()
    first, second = measured(model, Spatial(0.25))
    assert first.held_by == () and second.held_by == ("1",) and second.shared_bytes == second.exact.held_bytes
    tuned = randbp.autotune(model, batch(), 0.25, rounds=0, count_shared=False)
    assert tuned["2"].exact and not tuned["0"].exact
    assert "also held by" in str(randbp.autotune(model, batch(), 0.25, rounds=0))


def test_a_layer_used_twice_counts_with_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(input=x).tanh()).mean((2, 3))

    model = Twice()
    (layer,) = measured(model, Spatial(0.25), draws=4, seed=1)
    row = gradient_error(model, batch(), weight_vjp=Spatial(0.25), draws=4, seed=1).total
    assert layer.norm_square == pytest.approx(row.norm**2)
    assert layer.candidates[0].variance / layer.norm_square == pytest.approx(row.variance.estimate)
    assert layer.exact.held_bytes == 2 * 16 * 4 * 64 * 8


def test_parametrised_weights_and_autocast() -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    assert [layer.name for layer in measured(model, Spatial(0.5))] == ["0", "2"]
    model, (x, y) = network().float(), batch()

    def objective(part: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return nn.functional.cross_entropy(model(part[0]), part[1])

    half, _ = measure(model, [(x.float(), y)], objective, [Spatial(0.5)], rounds=0)
    assert half.exact.held_bytes == 16 * 4 * 64 * 2 + 8 * 4 * 9 * 2  # the input and the weight in half precision


def test_same_seed_same_result_and_means_over_batches() -> None:
    first, again, other = (measured(network(), Spatial(0.25), seed=seed) for seed in (0, 0, 1))
    assert first[0].candidates[0].variance == again[0].candidates[0].variance != other[0].candidates[0].variance
    model = network()
    two = measure(model, [batch(), batch()], make_objective(model, None), [Spatial(0.25)], rounds=0)
    assert two[0].norm_square == pytest.approx(first[0].norm_square)
    assert two[0].candidates[0].variance != first[0].candidates[0].variance  # other draws of the same batch


def test_seconds_are_measured_where_wanted() -> None:
    layers = measured(network(), Spatial(0.25), Spatial(0.5), rounds=2)
    assert all(0 <= o.seconds < 10 for layer in layers for o in (layer.exact, *layer.candidates))


@dataclass(frozen=True)
class Picky(Spatial):
    """Refuses strided layers, or all of them."""

    everywhere: bool = False

    def sketch(self, input: Tensor, spec: Any, draw: Any) -> tuple[Tensor, ...]:
        if self.everywhere or spec.stride != (1, 1):
            raise ValueError("not here")
        return super().sketch(input, spec, draw)


def test_candidates_that_refuse_a_layer_are_left_out_there() -> None:
    first, second = measured(network(), Picky(0.5), Spatial(0.5))
    assert [len(first.candidates), len(second.candidates)] == [2, 1]
    with pytest.raises(ValueError, match=r"candidates: Picky\(.*\) refuses all layers: not here"):
        measured(network(), Picky(0.5, everywhere=True), Spatial(0.5))


def test_assignments_within_budget_beat_one_estimator_for_all() -> None:
    model, candidates = network(), [Spatial(1 / 2), Spatial(1 / 4), Spatial(1 / 8), Rounding(4), Rounding(2)]
    tuned = randbp.autotune(model, batch(), 0.27, candidates=candidates, rounds=0, draws=16)
    assert tuned.held_bytes <= 0.27 * tuned.exact_bytes
    uniform = gradient_error(model, batch(), weight_vjp=Spatial(0.25), draws=16).total.variance.estimate
    found = gradient_error(model, batch(), weight_vjp=tuned, draws=64, seed=5).total.variance
    assert found.estimate < uniform
    assert tuned.error**2 == pytest.approx(found.estimate, rel=0.3)  # its own draws, and these


def test_the_callback_takes_it() -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, part: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(part[0]), part[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    tuned = randbp.autotune(module, batch(), 0.2, rounds=0)
    assert list(tuned) == ["net.0", "net.2"]
    assert dict(tuned) == randbp.autotune(module.net, batch(), 0.2, rounds=0).prefixed("net")
    seen: list[dict[str, float]] = []
    callback = TensorDropout(weight_vjp=tuned)
    module.on_train_batch_end = lambda *_: seen.append(callback.handle.keep_rates)  # type: ignore
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(callbacks=[callback], max_epochs=1, enable_model_summary=False, **options).fit(
        module, DataLoader(TensorDataset(*batch()), batch_size=8)
    )
    assert seen[0] == {name: estimator.keep for name, estimator in tuned.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "time", "rounds": 0}, "rounds=0: expected at least 1"),
        ({"draws": 1}, "draws=1: expected an integer >= 2"),
        ({"layers": "nope"}, "layers='nope': matches none"),
        ({"candidates": Spatial(0.5)}, r"candidates=Spatial\(.*\): expected several estimators"),
        ({"candidates": [3]}, "candidates: 3, expected estimators"),
        ({"model": network().requires_grad_(False)}, "model: all parameters are frozen"),
        ({"candidates": [Spatial(0.5)], "budget": 0.1}, r"budget=0\.1: the candidates reach 0\.4"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        randbp.autotune(**{"model": network(), "sample_batch": batch(), "rounds": 1, **options})


def test_another_objective_needs_its_measurement() -> None:
    tuned = randbp.autotune(network(), batch(), 0.5, rounds=0)
    with pytest.raises(ValueError, match="rounds=0: expected at least 1 where the objective is 'time'"):
        tuned.with_budget(0.5, objective="time")
    assert tuned.with_budget(0.25).held_bytes <= 0.25 * tuned.exact_bytes


def test_gradients_that_are_not_finite_are_named() -> None:
    x, y = batch()
    for bad in (x.log(), x / 0):
        with pytest.raises(ValueError, match="loss: the gradient of layer '0' is not finite"):
            randbp.autotune(network(), (bad, y), rounds=0)


def test_a_layer_without_a_gradient_has_no_error() -> None:
    model = network()
    tuned = randbp.autotune(model, batch(), 0.5, loss=lambda y, _: y.square().sum() * 0, rounds=0)
    assert tuned.error == 0 and "nan" not in str(tuned)


def test_models_that_cannot_be_tuned_are_refused() -> None:
    model = network()
    with randbp.randomize(model), pytest.raises(ValueError, match="'0' is already randomised"):
        randbp.autotune(model, batch())
    for layer in (0, 2):
        model[layer].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="the loss depends on no randomisable layer with a trainable weight"):
        randbp.autotune(model, batch(), rounds=0)
    assert Exact().exact and type(model[0]) is nn.Conv2d
