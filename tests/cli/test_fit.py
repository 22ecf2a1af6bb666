"""``randbp fit`` and its sisters: what a run leaves behind, resuming, evaluation, the user's own classes."""

import csv
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from randbp import IfFaster, Precision, Rounding
from randbp.cli.main import main
from randbp.cli.run_folder import claim
from randbp.estimators.plain import configure
from tests.cli.forked import run_commands

ROOT = Path(__file__).parents[2]
ONE = ("--trainer.max_epochs=1", "--test_after_fit=false", "--trainer.limit_val_batches=0")
CONFIG = {
    "name": "tiny",
    "model": {
        "class_path": "experiments.task.Classification",
        "init_args": {
            "num_classes": 4,
            "model": {
                "class_path": "experiments.models.DigitsCNN",
                "init_args": {"num_classes": 4, "in_channels": 3, "width": 4},
            },
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                "init_args": {"T_max": 2},
            },
        },
    },
    "data": {
        "class_path": "experiments.data.GeneratedImages",
        "init_args": {"num_classes": 4, "size": 8, "train_size": 72, "test_size": 40, "batch_size": 16},
    },
    "trainer": {"max_epochs": 2, "log_every_n_steps": 1},
}


@pytest.fixture
def randbp(tmp_path, monkeypatch):
    """Run a command in an empty folder that has ``tiny.yaml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDBP_DEBUG", raising=False)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))

    def run(command: str, *options: str) -> int:
        return main([command, "--config=tiny.yaml", "--wandb=disabled", *options])

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder) if row.get(name)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- one run


def test_fit_leaves_metrics_config_checkpoint_and_summary(randbp, capsys):
    assert randbp("fit") == 0
    folder = Path("runs/tiny/0")
    assert len(column(folder, "train/loss")) == 2 * 4
    assert len(column(folder, "val/accuracy")) == 2
    assert len(column(folder, "test/accuracy")) == 1
    assert "results in runs/tiny/0" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["metrics"]["test/accuracy"] == pytest.approx(column(folder, "test/accuracy")[0])
    assert summary["estimators"]["weight_vjp"]["name"] == "Exact"
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["label_smoothing"] == 0.0  # resolved: defaults too


def test_the_saved_configuration_repeats_the_run_beside_it(randbp):
    assert randbp("fit", "--tensor_dropout.weight_vjp=Spatial", "--tensor_dropout.weight_vjp.keep=0.5") == 0
    before = content(Path("runs/tiny/0"))
    assert main(["fit", "--config=runs/tiny/0/config.yaml"]) == 0
    for name in ("train/loss", "val/loss", "test/loss"):
        assert column(Path("runs/tiny/1"), name) == column(Path("runs/tiny/0"), name)
    assert content(Path("runs/tiny/0")) == before


def test_an_existing_version_is_never_touched(randbp, capsys):
    assert randbp("fit", "--version=first") == 0
    before = content(Path("runs"))
    assert randbp("fit", "--version=first") == 2
    assert "--version=first: the run runs/tiny/first exists" in one_error_line(capsys)
    assert content(Path("runs")) == before


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, monkeypatch):
    barrier, listed = threading.Barrier(8), Path.iterdir

    def all_look_before_any_makes(path):
        names = list(listed(path))
        barrier.wait()
        return iter(names)

    monkeypatch.setattr(Path, "iterdir", all_look_before_any_makes)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claim(tmp_path, "a/b", None), range(8)))
    assert sorted(int(f.name) for f in folders) == list(range(8))


def test_no_test_on_request(randbp):
    assert randbp("fit", "--test_after_fit=false", "--trainer.max_epochs=1") == 0
    assert not column(Path("runs/tiny/0"), "test/accuracy")


# --- tensor dropout


def test_lean_mode_from_the_command_line_and_a_file(randbp, tmp_path):
    assert randbp("fit", "--version=plain", *ONE) == 0
    assert randbp("fit", "--version=exact", "--tensor_dropout.lean=exact", *ONE) == 0
    assert randbp("fit", "--version=lean", "--tensor_dropout.lean=true", "--tensor_dropout.bits=2", *ONE) == 0
    settings = tmp_path / "lean.yaml"
    settings.write_text("tensor_dropout:\n  lean: {'': exact, 'model.*': true}\n  bits: 3\n")
    assert randbp("fit", "--version=layers", f"--config={settings}", *ONE) == 0
    losses = {v: column(Path("runs/tiny", v), "train/loss") for v in ("plain", "exact", "lean", "layers")}
    held = {v: json.loads(Path("runs/tiny", v, "summary.json").read_text())["cost"]["held_bytes"] for v in losses}
    assert losses["exact"] == losses["plain"] and held["exact"] < held["plain"]
    config = yaml.safe_load(Path("runs/tiny/layers/config.yaml").read_text())["tensor_dropout"]
    assert config["lean"] == {"": "exact", "model.*": True} and config["bits"] == 3
    checkpoint = torch.load("runs/tiny/lean/checkpoints/last.ckpt", weights_only=True)
    (state,) = [state for name, state in checkpoint["callbacks"].items() if "TensorDropout" in name]
    assert state["settings"]["lean"] is True and state["settings"]["bits"] == 2
    assert randbp("fit", "--version=wrong", "--tensor_dropout.lean=fast") == 2


def test_presets_from_the_command_line_a_file_and_a_saved_configuration(quick_races, randbp, tmp_path, capsys):
    assert randbp("fit", "--version=plain", *ONE) == 0
    memory = f"--config={ROOT / 'configs/memory.yaml'}"
    assert main(["fit", "--config=runs/tiny/plain/config.yaml", "--version=a", memory]) == 0
    narrow, rounded = IfFaster(Precision()), IfFaster(Precision(estimator=Rounding(4)))
    given = {"weight_vjp": configure(rounded), "input_vjp": configure(narrow), "lean": True, "layers": "*"}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({"tensor_dropout": given}))
    assert randbp("fit", "--version=b", "--config=given.yaml", *ONE) == 0
    assert main(["fit", "--config=runs/tiny/a/config.yaml", "--version=c"]) == 0
    callback = {"class_path": "randbp.callbacks.TensorDropout", "init_args": {"preset": "memory", "layers": None}}
    (tmp_path / "callback.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    capsys.readouterr()
    options = ("--tensor_dropout.layers=model.classifier.*", "--print_config")
    assert randbp("fit", "--config=callback.yaml", *options) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["trainer"]["callbacks"][0]["init_args"]["lean"] == "unset"
    assert randbp("fit", "--version=exact", "--tensor_dropout.preset=exact", *ONE) == 0
    losses = {
        version: column(Path("runs/tiny", version), "train/loss") for version in ("plain", "a", "b", "c", "exact")
    }
    assert losses["plain"] == losses["exact"] != losses["a"] == losses["b"] == losses["c"]
    summaries = [json.loads(Path("runs/tiny", version, "summary.json").read_text()) for version in ("a", "plain")]
    assert summaries[0]["cost"]["held_bytes"] < summaries[1]["cost"]["held_bytes"] / 3
    assert summaries[0]["estimators"]["preset"] == "memory" and summaries[1]["estimators"]["preset"] is None


def test_keep_rate_1_is_exact_and_less_is_not(randbp):
    spatial = "--tensor_dropout.weight_vjp=Spatial"
    assert randbp("fit", "--version=exact", *ONE) == 0
    assert randbp("fit", "--version=one", spatial, "--tensor_dropout.weight_vjp.keep=1", *ONE) == 0
    assert randbp("fit", "--version=half", spatial, "--tensor_dropout.weight_vjp.keep=0.5", *ONE) == 0
    losses = {version: column(Path("runs/tiny", version), "train/loss") for version in ("exact", "one", "half")}
    assert losses["one"] == losses["exact"]
    assert losses["half"][0] == losses["exact"][0]  # the forward pass is exact
    assert losses["half"][1:] != losses["exact"][1:]
    summary = json.loads(Path("runs/tiny/half/summary.json").read_text())
    assert summary["estimators"]["weight_vjp"].items() >= {"name": "Spatial", "keep": 0.5, "center": True}.items()


def test_one_seed_governs_weights_order_and_samples(randbp):
    dropout = ("--tensor_dropout.weight_vjp=Axes", "--tensor_dropout.weight_vjp.keep=0.25", *ONE)
    for version, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert randbp("fit", f"--version={version}", f"--seed_everything={seed}", *dropout) == 0
    # The samples alone: another seed for them changes the second step, not the first.
    assert randbp("fit", "--version=d", "--seed_everything=1", "--tensor_dropout.seed=0", *dropout) == 0
    a, b, c, d = (column(Path("runs/tiny", version), "train/loss") for version in "abcd")
    assert a == b
    assert a[0] != c[0]
    assert a[0] == d[0] and a[1:] != d[1:]


# --- resuming and evaluating


def test_resuming_repeats_the_uninterrupted_run(randbp):
    dropout = ("--tensor_dropout.weight_vjp=Spatial", "--tensor_dropout.weight_vjp.keep=0.25")
    assert randbp("fit", "--version=whole", *dropout) == 0
    assert randbp("fit", "--version=head", *dropout, "--trainer.max_epochs=1") == 0
    assert randbp("fit", "--version=tail", *dropout, "--ckpt_path=runs/tiny/head/checkpoints/last.ckpt") == 0
    whole = column(Path("runs/tiny/whole"), "train/loss")
    assert column(Path("runs/tiny/head"), "train/loss") == whole[:4]
    assert column(Path("runs/tiny/tail"), "train/loss") == whole[4:]
    assert column(Path("runs/tiny/tail"), "test/loss") == column(Path("runs/tiny/whole"), "test/loss")


def test_evaluation_of_a_checkpoint_repeats_the_numbers_of_the_training(randbp):
    assert randbp("fit") == 0
    checkpoint = "--ckpt_path=runs/tiny/0/checkpoints/last.ckpt"
    assert randbp("test", checkpoint) == 0
    assert randbp("validate", checkpoint) == 0
    assert randbp("predict", checkpoint) == 0
    fit = Path("runs/tiny/0")
    assert column(Path("runs/tiny/test-0"), "test/loss") == column(fit, "test/loss")
    assert column(Path("runs/tiny/validate-0"), "val/loss") == column(fit, "val/loss")[-1:]
    predictions = torch.cat(torch.load("runs/tiny/predict-0/predictions.pt", weights_only=True))
    assert predictions.shape == (40, 4)
    assert torch.allclose(predictions.sum(1), torch.ones(40))


# --- the user's own code

OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class Net(LightningModule):
    def __init__(self, hidden: int = 4, fail_at: int = -1):
        super().__init__()
        self.fail_at = fail_at
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1))
    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise RuntimeError("a bug\\nof my own")
        loss = self.layers(batch[0]).square().mean()
        self.log("my_loss", loss)
        return loss

class Data(LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3)), batch_size=2)
"""
OWN_OPTIONS = [
    "--model=my_project.Net",
    "--data=my_project.Data",
    "--optimizer=torch.optim.SGD",
    "--optimizer.lr=0.1",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=1",
    "--wandb=disabled",
]


def test_own_classes_in_any_folder_need_no_experiments(tmp_path):
    (tmp_path / "my_project.py").write_text(OWN)
    run_commands(tmp_path, ["fit", *OWN_OPTIONS, "--model.hidden=5"], without="experiments")
    assert len(column(tmp_path / "runs/run/0", "my_loss")) == 4
    assert "hidden: 5" in (tmp_path / "runs/run/0/config.yaml").read_text()


def test_a_failing_run_keeps_what_it_had_and_leaves_others_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    (tmp_path / "my_project.py").write_text(OWN)
    assert main(["fit", *OWN_OPTIONS]) == 0
    before = content(Path("runs/run/0"))
    capsys.readouterr()
    assert main(["fit", *OWN_OPTIONS, "--model.fail_at=2"]) == 1
    line = one_error_line(capsys)
    assert line == "randbp fit: RuntimeError: a bug of my own (traceback in runs/run/1/traceback.txt)"
    assert "raise RuntimeError" in Path("runs/run/1/traceback.txt").read_text()
    assert len(column(Path("runs/run/1"), "my_loss")) == 2
    assert json.loads(Path("runs/run/1/summary.json").read_text())["status"] == "failed"
    assert content(Path("runs/run/0")) == before


def one_error_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "Set a lower value for log" not in line]
    assert len(lines) == 1, lines
    return lines[0]


# --- processes and configurations


def test_two_processes_share_one_folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    devices = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", "randbp.cli.main", "fit", "--config=tiny.yaml", "--wandb=disabled", *devices]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs/tiny").iterdir()] == ["0"]
    assert len(column(tmp_path / "runs/tiny/0", "train/loss")) == 2  # half the batches of one process
    assert done.stdout.count("results in") == 1


WHOLE = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "model:" in path.read_text()]
"""Configurations that stand alone; others go beside one of these."""


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_ready_configurations_are_understood(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["fit", f"--config={path}", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["name"] == path.stem
    classes = config["model"]["init_args"]["model"]["init_args"]["num_classes"]
    assert config["model"]["init_args"]["num_classes"] == classes
    assert config["model"]["init_args"]["lr_scheduler"]["init_args"]["T_max"] == config["trainer"]["max_epochs"]


def test_top_level_help_and_version(capsys):
    assert main([]) == main(["--help"]) == 0
    assert "predict" in capsys.readouterr().out
    assert main(["fit", "--help"]) == 0
    assert "--tensor_dropout" in capsys.readouterr().out
