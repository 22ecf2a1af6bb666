import json
from pathlib import Path

import pytest

from experiments.__main__ import main
from randbp.cli.sweep import plan

ROOT = Path(__file__).parents[2]
# One step of a narrow network: what counts here is that all parts meet.
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.init_args.model.init_args.width=4")


def test_demo_compares_runs_on_digits_and_spares_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    earlier = tmp_path / "demo" / "keep=1" / "summary.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    assert main(["demo", f"--root={tmp_path}", "--count=2", "--jobs=2", *SHORT]) == 0
    assert earlier.read_text() == "{}" and not (tmp_path / "demo" / "report.html").exists()

    runs = tmp_path / "demo-2"
    out = capsys.readouterr().out
    assert f"report in {runs / 'report.html'}" in out and "1/2" in out and "×" in out
    page = (runs / "report.html").read_text()
    assert "DigitsCNN" in page and "Digits" in page
    first = json.loads((runs / "keep=1" / "summary.json").read_text())
    second = json.loads((runs / "keep=0.5" / "summary.json").read_text())
    assert first["run"]["data"] == "experiments.data.digits.Digits"
    assert second["estimators"]["weight_vjp"]["name"] == "Spatial"
    assert second["cost"]["held_bytes"] < first["cost"]["held_bytes"]
    assert "test/accuracy" in second["metrics"]


def test_demo_has_the_four_keep_rates_and_nothing_else_differs(tmp_path: Path) -> None:
    runs = plan(ROOT / "configs" / "sweeps" / "demo.yaml", "demo", root=tmp_path)
    assert [run.version for run in runs] == ["keep=1", "keep=0.5", "keep=0.25", "keep=0.125"]
    flag = "--tensor_dropout.weight_vjp.keep="
    common = {tuple(word for word in run.command if not word.startswith((flag, "--version="))) for run in runs}
    assert len(common) == 1


def test_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--help"]) == 0
    assert "gradient-error" in capsys.readouterr().out
    assert main(["dmeo"]) == 2
    assert "no command 'dmeo', expected one of demo, gradient-error" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "start it in the root of the checkout" in capsys.readouterr().err
