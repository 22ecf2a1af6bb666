import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from randbp.cli.sweep import plan

ROOT = Path(__file__).parents[2]
# One step of a narrow network: what counts here is that all parts meet.
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--model.init_args.model.init_args.width=4")


def demo(root: Path, *options: str) -> str:
    command = [sys.executable, "-m", "experiments", "demo", f"--root={root}", *options, *SHORT]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_demo_compares_runs_on_digits_and_spares_earlier_results(tmp_path: Path) -> None:
    out = demo(tmp_path, "--count=2", "--jobs=2")
    assert "report in" in out and "1/2" in out and "×" in out
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "DigitsCNN" in page and "Digits" in page
    first = json.loads((tmp_path / "demo" / "keep=1" / "summary.json").read_text())
    second = json.loads((tmp_path / "demo" / "keep=0.5" / "summary.json").read_text())
    assert first["run"]["data"] == "experiments.data.digits.Digits"
    assert second["estimators"]["weight_vjp"]["name"] == "Spatial"
    assert second["cost"]["held_bytes"] < first["cost"]["held_bytes"]
    assert "test/accuracy" in second["metrics"]

    earlier = {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    out = demo(tmp_path, "--count=1")
    assert str(tmp_path / "demo-2" / "report.html") in out
    assert earlier == {path: path.read_bytes() for path in (tmp_path / "demo").rglob("*") if path.is_file()}


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
