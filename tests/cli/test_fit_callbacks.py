"""The callbacks that steer keep rates, by class path in the configuration of ``randbp fit``."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from randbp.cli.main import main
from tests.cli.test_fit import CONFIG


def test_callbacks_of_keep_rates_come_from_a_file_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks = [
        {"class_path": "randbp.callbacks.VarianceControl", "init_args": {"budget": 0.1, "every": 2}},
        {"class_path": "randbp.callbacks.GradientErrorMonitor", "init_args": {"every": 3}},
        {
            "class_path": "randbp.callbacks.KeepRateSchedule",
            "init_args": {"schedule": "cosine", "layers": "model.head*"},
        },
    ]
    importance = {"class_path": "randbp.Importance", "init_args": {"keep": 0.5}}
    settings: dict[str, Any] = {**CONFIG, "tensor_dropout": {"weight_vjp": importance, "input_vjp": importance}}
    settings["trainer"] = {"max_epochs": 2, "log_every_n_steps": 1, "callbacks": callbacks[:2]}
    Path("fit.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config=fit.yaml", "--wandb=disabled"]) == 0
    (folder,) = Path("runs/tiny").iterdir()
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    (control,) = [value for name, value in state.items() if "VarianceControl" in name]
    assert control["rates"] and len(control["history"]) >= 3
    rows = "".join(path.read_text() for path in folder.rglob("metrics.csv"))
    assert "variance/ratio" in rows and "gradient_error/all/error" in rows and "/weight_vjp" in rows

    settings["trainer"]["callbacks"] = callbacks[2:]
    Path("fit.yaml").write_text(yaml.safe_dump(settings))
    capsys.readouterr()
    assert main(["fit", "--config=fit.yaml", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][0]["init_args"]
    assert printed["schedule"] == "cosine" and printed["layers"] == "model.head*" and printed["end"] == 1.0
    callbacks[2]["init_args"] = {"schedule": "step", "start": 0.25, "every": 1}
    Path("fit.yaml").write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config=fit.yaml", "--wandb=disabled", "--version=scheduled"]) == 0
    assert "keep_rate" in "".join(path.read_text() for path in Path("runs/tiny/scheduled").rglob("metrics.csv"))
