"""``randbp tune``, and ``randbp fit`` with what it wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from randbp.cli.main import main
from randbp.cli.measuring_command import Measure
from tests.cli.test_fit import CONFIG, ROOT

FAST = ["--rounds=0", "--draws=2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    shutil.copy(ROOT / "configs/digits.yaml", tmp_path)
    return tmp_path


def chosen(path: str = "tuned.yaml") -> dict:
    return yaml.safe_load(Path(path).read_text())["tensor_dropout"]["weight_vjp"]


def test_digits_are_tuned_and_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--config=digits.yaml", "--model.init_args.model.init_args.width=8"]
    assert main(["tune", *small, "--budget=0.1", *FAST]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["digits.yaml", "tiny.yaml", "tuned.yaml"]
    printed = capsys.readouterr().out
    assert "model.features.6" in printed and "budget: 0.1 of the exact layers' memory" in printed
    layers = chosen()
    assert list(layers) == [f"model.features.{number}" for number in (0, 2, 4, 6)]
    assert main(["fit", *small, "--config=tuned.yaml", "--trainer.max_epochs=1", "--wandb=disabled"]) == 0
    summary = json.loads(Path("runs/digits/0/summary.json").read_text())
    estimators = summary["estimators"]["weight_vjp"]["estimators"]
    names = {name: f"randbp.{fields['name']}" for name, fields in estimators.items()}
    assert names == {name: made["class_path"] for name, made in layers.items()}
    assert summary["status"] == "finished" and summary["metrics"]["test/accuracy"] > 0.2


def test_several_batches_layers_and_a_base_with_an_estimator(folder: Path) -> None:
    base = {"tensor_dropout": {"weight_vjp": {"class_path": "randbp.Spatial", "init_args": {"keep": 0.5}}}}
    Path("base.yaml").write_text(yaml.safe_dump(base))
    some = "--tensor_dropout.layers=model.features.[24]"
    assert main(["tune", "--config=tiny.yaml", "--config=base.yaml", some, "--batches=3", *FAST]) == 0
    assert list(chosen()) == ["model.features.2", "model.features.4"]
    again = ["--config=tiny.yaml", "--config=base.yaml", "--config=tuned.yaml", some, "--trainer.max_epochs=1"]
    assert main(["fit", *again, "--wandb=disabled"]) == 0


def test_the_same_seed_chooses_the_same(folder: Path) -> None:
    for output in ("a.yaml", "b.yaml"):
        assert main(["tune", "--config=tiny.yaml", f"--output={output}", *FAST]) == 0
    assert Path("a.yaml").read_text() == Path("b.yaml").read_text()


def test_a_file_that_cannot_be_written_after_all_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measure.on_train_batch_start

    def then_in_the_way(*arguments: Any) -> int:
        Path("tuned.yaml").mkdir(exist_ok=True)
        return measured(*arguments)

    monkeypatch.setattr(Measure, "on_train_batch_start", then_in_the_way)
    assert main(["tune", "--config=tiny.yaml", *FAST]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "--output=tuned.yaml: Is a directory; its content is printed above" in line
    text = printed.out[printed.out.index("# Written by randbp tune.") :]
    assert list(yaml.safe_load(text)["tensor_dropout"]["weight_vjp"])
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
