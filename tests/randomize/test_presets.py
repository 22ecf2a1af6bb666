"""Presets are names for arguments of randomize: they mean what these mean, and what is given goes before them."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import randbp
from randbp import Exact, Rounding, Spatial
from randbp.diagnostics import gradient_error, memory_report
from randbp.randomize import PRESETS, UNSET, Settings
from randbp.randomize.presets import settings

pytestmark = pytest.mark.usefixtures("quick_races")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 64), nn.GELU()).append(
        nn.Linear(64, 5)
    )


def step(model: nn.Module, **arguments: Any) -> tuple[Tensor, int]:
    """All gradients of a step, and the bytes that the model holds for backward."""
    x = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with randbp.randomize(model, **arguments):
        held = memory_report(model, x).held_bytes
        model.zero_grad()
        functional.cross_entropy(model(x), torch.arange(16) % 5).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients), held


def exact_step() -> tuple[Tensor, int]:
    return step(network(), weight_vjp=Exact())


def test_without_a_preset_everything_is_as_it_was() -> None:
    assert settings() == Settings(Spatial(keep=0.25), Exact(), None, False, 4, 4)
    with randbp.randomize(network()) as handle:
        assert handle.keep_rates == {"0": 0.25, "3": 0.25}


def test_exact_holds_less_and_gives_the_same_bits() -> None:
    (exact, most), (gradient, held) = exact_step(), step(network(), preset="exact")
    assert torch.equal(gradient, exact) and held < 0.8 * most


def test_time_is_within_its_error_and_leaves_what_is_held() -> None:
    (exact, most), (gradient, held) = exact_step(), step(network(), preset="time")
    assert (gradient - exact).norm() <= 0.02 * exact.norm() and held <= most
    with randbp.randomize(network(), preset="time") as handle:
        assert handle.layers == ["0", "3", "7", "9"]


def test_memory_is_what_its_arguments_say() -> None:
    (exact, most), (gradient, held) = exact_step(), step(network(), preset="memory")
    chosen = PRESETS["memory"]
    said = {name: getattr(chosen, name) for name in ("weight_vjp", "input_vjp", "layers", "lean", "bits", "parts")}
    again, held_again = step(network(), **said)
    assert torch.equal(gradient, again) and held == held_again < most / 4
    assert 0 < (gradient - exact).norm() < 0.2 * exact.norm()
    with randbp.randomize(network(), preset="memory") as handle:
        assert handle.layers == ["0", "3", "7", "9"] and not handle.left_exact
        assert set(handle.keep_rates.values()) == {1 / 8}


def test_fewer_bits_are_those_of_all_that_a_preset_rounds() -> None:
    (four, held), (two, less) = step(network(), preset="memory"), step(network(), preset="memory", bits=2)
    exact = exact_step()[0]
    assert less < 0.65 * held and (two - exact).norm() > 2 * (four - exact).norm()


MEMORY = PRESETS["memory"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lean": False}, {"lean": False}),
        ({"lean": "exact"}, {"lean": "exact"}),
        ({"layers": None}, {"layers": None}),
        ({"layers": "7"}, {"layers": "7"}),
        ({"parts": 1}, {"parts": 1}),
        ({"input_vjp": Exact()}, {"input_vjp": Exact()}),
        ({"weight_vjp": Spatial(keep=0.25)}, {"weight_vjp": Spatial(keep=0.25)}),
        ({"weight_vjp": Rounding(8), "bits": 3}, {"weight_vjp": Rounding(8), "bits": 3}),
        ({"weight_vjp": {"0": Rounding(8)}}, {"weight_vjp": {"0": Rounding(8)}, "layers": None}),
        ({"weight_vjp": {"0": Rounding(8)}, "layers": "*"}, {"weight_vjp": {"0": Rounding(8)}}),
        ({name: UNSET for name in ("weight_vjp", "input_vjp", "layers", "lean", "bits", "parts")}, {}),
    ],
    ids=str,
)
def test_what_is_given_goes_before_the_preset(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = settings("memory", **given)
    for name in ("weight_vjp", "input_vjp", "layers", "lean", "bits", "parts"):
        assert getattr(found, name) == expected.get(name, getattr(MEMORY, name)), name
    with randbp.randomize(network(), preset="memory", **given) as handle:
        chosen = {None: ["0", "3"], "7": ["7"], "*": ["0", "3", "7", "9"]}
        assert handle.layers == chosen[expected.get("layers", MEMORY.layers)]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)), nn.LSTM(3, 4), nn.LazyConv2d(3, 3)]
)
def test_a_model_without_layers_to_estimate_takes_every_preset(preset: Any, model: nn.Module) -> None:
    before = type(model)
    lazy = isinstance(model, nn.LazyConv2d) and not PRESETS[preset].weight_vjp.exact
    with (
        pytest.warns(UserWarning, match="stay exact") if lazy else torch.random.fork_rng(),
        randbp.randomize(model, preset=preset) as handle,
    ):
        assert handle.layers == [] and list(handle.left_exact) == [""] * lazy
    assert type(model) is before


def test_unset_stays_itself() -> None:
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET


@pytest.mark.parametrize("preset", PRESETS)
def test_the_error_of_a_preset_is_measured_with_all_that_it_rounds_and_repeats(preset: Any) -> None:
    model, batch = network(), (torch.randn(16, 3, 12, 12), torch.arange(16) % 5)
    result = gradient_error(model, batch, preset=preset, draws=16)
    error = result.model.error.estimate
    assert error == 0 if preset == "exact" else error <= 0.02 if preset == "time" else 0.01 < error < 0.2
    assert not result.biased() and len(result.rows) == (2 if preset == "exact" else 4)
    if preset == "memory":
        layers_alone = gradient_error(model, batch, weight_vjp=Rounding(4), layers="*", draws=16)
        assert error > 1.1 * layers_alone.model.error.estimate
        with randbp.randomize(model, preset=preset):
            assert str(gradient_error(model, batch, draws=16)) == str(result)
            with pytest.raises(ValueError, match="preset=memory: the model is randomised already"):
                gradient_error(model, batch, preset=preset)
