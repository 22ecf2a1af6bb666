"""One estimator per layer: in ``randomize``, in the callback, in a YAML file."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn

import randbp
from randbp import Batch, Channels, Exact, Rounding, Spatial
from randbp.callbacks import TensorDropout
from randbp.callbacks.summary import describe_estimators
from randbp.cli.main import main
from randbp.estimators import configure
from tests.cli.test_fit import CONFIG


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3))


def weight_grads(model: nn.Sequential) -> list[Tensor]:
    x = torch.randn(6, 2, 10, 10, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad(model(x).square().sum(), [model[i].weight for i in (0, 2, 4)]))


def test_each_layer_gets_its_own_and_the_first_match_counts() -> None:
    model = network()
    exact = weight_grads(model)
    with randbp.randomize(model, {"2": Channels(0.5), "[24]": Spatial(0.25)}) as handle:
        assert handle.keep_rates == {"2": 0.5, "4": 0.25} and type(model[0]) is nn.Conv2d
        assert handle.input_keep_rates == {"2": 1.0, "4": 1.0}
        found = weight_grads(model)
    assert torch.equal(found[0], exact[0])
    assert (found[1].abs().sum((0, 2, 3)) == 0).sum() == 2  # half of the channels
    for alone, estimator in ((1, Channels(0.5)), (2, Spatial(0.25))):
        with randbp.randomize(model, estimator, layers=str(2 * alone)):
            assert torch.equal(weight_grads(model)[alone], found[alone])


def test_input_vjps_by_layer() -> None:
    model = network()
    exact = weight_grads(model)
    with randbp.randomize(model, Exact(), {"2": Spatial(0.5)}) as handle:
        assert handle.input_keep_rates == {"2": 0.5}
        found = weight_grads(model)
    assert not torch.allclose(found[0], exact[0], rtol=1e-3)
    assert torch.equal(found[1], exact[1]) and torch.equal(found[2], exact[2])


def test_layers_without_a_key() -> None:
    model = network()
    with randbp.randomize(model, Spatial(0.25), {"2": Spatial(0.5)}) as handle:  # the other VJP is for all
        assert handle.keep_rates == {"0": 0.25, "2": 0.25, "4": 0.25}
        assert handle.input_keep_rates == {"0": 1.0, "2": 0.5, "4": 1.0}
    with randbp.randomize(model, {"2": Spatial(0.5)}, layers=["0", "2"]) as handle:
        assert handle.keep_rates == {"0": 1.0, "2": 0.5}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"features.*": Spatial(0.5)}, r"weight_vjp: key 'features\.\*' matches none of the layers '0', '2', '4'"),
        ({"0": Spatial(0.5), "nope": Spatial(0.5)}, r"weight_vjp: key 'nope' matches none of the layers '0'$"),
        ({"0": 0.5}, r"weight_vjp=0\.5: expected an estimator .* \(layers '0'\)"),
        ({0: Spatial(0.5)}, r"weight_vjp: key 0, expected the name or glob of layers"),
    ],
)
def test_wrong_mappings_fail_early_and_leave_the_model(mapping: dict, message: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        randbp.randomize(model, mapping)
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(ValueError, match=r"input_vjp=Batch.*serves only weight_vjp \(layers '\*'\)"):
        TensorDropout(input_vjp={"*": Batch(0.5)})


def test_the_callback_describes_a_mapping() -> None:
    callback = TensorDropout({"model.0": Rounding(4), "model.*": Spatial(0.5)})
    settings = callback.state_dict()["settings"]["weight_vjp"]
    assert settings["model.*"] == {"class": "Spatial", "keep": 0.5, "per_example": True, "center": True, "runs": True}
    described = describe_estimators(Trainer(callbacks=[callback], logger=False, accelerator="cpu"))
    assert described is not None
    assert described["weight_vjp"]["name"] == "PerLayer" and described["weight_vjp"]["keep"] == (0.125 + 0.5) / 2
    assert described["weight_vjp"]["estimators"]["model.0"]["bits"] == 4
    assert described["input_vjp"]["name"] == "Exact"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def write(name: str, mapping: dict) -> str:
    Path(name).write_text(yaml.safe_dump({"tensor_dropout": {"weight_vjp": mapping}}, sort_keys=False))
    return f"--config={name}"


def fit(*options: str) -> int:
    return main(["fit", "--config=tiny.yaml", "--wandb=disabled", "--trainer.max_epochs=1", *options])


def test_a_file_names_an_estimator_per_layer(folder: Path) -> None:
    chosen = {"model.features.0": Spatial(0.5), "model.features.*": Rounding(4, Spatial(0.25, center=False))}
    option = write("tuned.yaml", {name: configure(estimator) for name, estimator in chosen.items()})
    assert fit(option) == 0
    summary = json.loads(Path("runs/tiny/0/summary.json").read_text())["estimators"]["weight_vjp"]
    assert summary["estimators"]["model.features.0"] == {
        "name": "Spatial",
        "keep": 0.5,
        "per_example": True,
        "center": True,
        "runs": True,
    }
    assert summary["estimators"]["model.features.*"]["estimator"]["center"] is False
    assert fit("--config=runs/tiny/0/config.yaml") == 0  # the resolved configuration says the same
    assert json.loads(Path("runs/tiny/1/summary.json").read_text())["estimators"]["weight_vjp"] == summary
    assert main(["report", "runs/tiny"]) == 0


def test_one_estimator_over_a_mapping_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write("tuned.yaml", {"model.*": configure(Spatial(0.5))})
    assert fit(first, write("later.yaml", configure(Spatial(0.25)))) == 2
    assert (
        "tensor_dropout.weight_vjp: one estimator cannot replace the mapping in an earlier file"
        in capsys.readouterr().err
    )
