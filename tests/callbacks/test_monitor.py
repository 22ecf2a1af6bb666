import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from randbp import Spatial
from randbp.callbacks import CostMonitor, RunSummary, TensorDropout

BATCH, STEPS = 4, 9


class Digits(LightningDataModule):
    """Nine batches of generated images, whose labels the brightness tells."""

    def _loader(self) -> DataLoader[Any]:
        labels = torch.arange(BATCH * STEPS) % 2
        noise = torch.randn(BATCH * STEPS, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(noise + 3.0 * labels[:, None, None, None], labels), BATCH)

    train_dataloader = val_dataloader = test_dataloader = _loader


class Net(LightningModule):
    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        seed_everything(3, verbose=False)
        self.model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
        self.fail_at = fail_at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.fail_at == self.global_step:
            raise RuntimeError("the dog ate the gradient\nand more")
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def _evaluate(self, batch: list[Tensor], stage: str) -> None:
        accuracy = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log(f"{stage}/accuracy", accuracy)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Held for backward: the images, the ReLU's output (which Flatten and Linear look at), log-probabilities, labels and
# the scalar sum of cross-entropy's weights.
HELD = 4 * BATCH * 64 + 4 * BATCH * 72 + 4 * BATCH * 2 + 8 * BATCH + 4


def make_trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "logger": CSVLogger(folder, name="run", version="a")} | options
    return Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **options,
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_summary_of_fit_and_test(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, CostMonitor(warmup_steps=3, held_every_n_steps=5))
    model, data = Net(), Digits()
    trainer.fit(model, data)
    fitted = read(tmp_path / "run" / "a" / "summary.json")
    trainer.test(model, data, verbose=False)
    tested = read(tmp_path / "run" / "a" / "summary.json")

    assert fitted["status"] == tested["status"] == "finished"
    assert fitted["error"] is None
    assert fitted["progress"] == {"epochs": 2, "max_epochs": 2, "steps": 2 * STEPS}
    cost = fitted["cost"]
    assert cost["held_bytes"] == HELD
    assert cost["steps_timed"] == 2 * STEPS - 3 - 3  # without steps 0, 1, 2 and the counts on 5, 10, 15
    assert 0 < cost["step_seconds_q25"] <= cost["step_seconds"] <= cost["step_seconds_q75"]
    weights = 4 * fitted["run"]["parameters"]
    assert cost["start_bytes"] == weights and "allocator" in cost["peak_source"]
    # The forward pass holds HELD, kernels take some scratch; nothing else of the process is in.
    assert weights + HELD <= cost["peak_bytes"] < 2 * weights + 10 * HELD
    assert tested["cost"] == cost  # a test does not change what the training cost
    assert fitted["run"] | {"module": "", "data": ""} == {
        "module": "",
        "model": "torch.nn.modules.container.Sequential",
        "data": "",
        "batch_size": BATCH,
        "parameters": 2 * 9 + 2 + 72 * 2 + 2,
        "seed": 3,
        "precision": "32-true",
        "devices": 1,
        "accumulate_grad_batches": 1,
    }
    assert fitted["run"]["module"].endswith("Net") and fitted["run"]["data"].endswith("Digits")
    assert fitted["estimators"] is None
    assert fitted["environment"]["torch"] == torch.__version__
    assert set(fitted["metrics"]) == {"train/loss", "val/accuracy"}
    assert set(tested["metrics"]) == {"train/loss", "val/accuracy", "test/accuracy"}
    assert tested["metrics"]["test/accuracy"] == pytest.approx(float(trainer.callback_metrics["test/accuracy"]))
    names = sorted(path.name for path in (tmp_path / "run" / "a").iterdir())
    assert names == ["metrics.csv", "summary.json"]  # and no temporary file


def test_estimators_are_named_and_shrink_what_is_held(tmp_path: Path) -> None:
    dropout = TensorDropout(weight_vjp=Spatial(keep=0.25), layers="model.0")
    make_trainer(tmp_path, dropout, CostMonitor(), logger=False).fit(Net(), Digits())
    summary = read(tmp_path / "summary.json")
    estimators = summary["estimators"]
    assert estimators["weight_vjp"] == {
        "name": "Spatial",
        "keep": 0.25,
        "per_example": True,
        "center": True,
        "runs": True,
    }
    assert estimators["input_vjp"] == {"name": "Exact", "keep": 1.0}
    assert estimators["layers"] == "model.0"
    images = 4 * BATCH * 64
    assert HELD - images < summary["cost"]["held_bytes"] <= HELD - images + 0.25 * images + 0.02 * images


def test_costs_reach_the_loggers_once_per_epoch(tmp_path: Path) -> None:
    make_trainer(tmp_path, CostMonitor(warmup_steps=0)).fit(Net(), Digits())
    with (tmp_path / "run" / "a" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["cost/held_bytes"]]
    assert [int(row["step"]) for row in rows] == [STEPS, 2 * STEPS]
    assert all(float(row["cost/held_bytes"]) == HELD for row in rows)
    assert all(float(row["cost/step_seconds"]) > 0 and float(row["cost/peak_bytes"]) > 0 for row in rows)


def test_monitoring_changes_no_number(tmp_path: Path) -> None:
    def weights(*callbacks: Any) -> list[Tensor]:
        model = Net()
        make_trainer(tmp_path, *callbacks, logger=False).fit(model, Digits())
        return list(model.parameters())

    for ours, theirs in zip(weights(CostMonitor(held_every_n_steps=2)), weights(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_failed_run_leaves_what_is_known(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, CostMonitor(warmup_steps=2), logger=False)
    with pytest.raises(RuntimeError, match="ate the gradient"):
        trainer.fit(Net(fail_at=STEPS + 3), Digits())
    summary = read(tmp_path / "summary.json")  # without a logger the run's folder is the root
    assert summary["status"] == "failed"
    assert summary["error"] == "RuntimeError: the dog ate the gradient"
    assert summary["progress"] == {"epochs": 1, "max_epochs": 2, "steps": STEPS + 3}
    assert summary["cost"]["held_bytes"] == HELD
    assert summary["cost"]["steps_timed"] == STEPS + 3 - 2
    assert "val/accuracy" in summary["metrics"]


def test_no_hook_stays_behind_when_a_counted_step_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ate the gradient"):
        make_trainer(tmp_path, CostMonitor()).fit(Net(fail_at=0), Digits())
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    assert y.grad_fn is not None
    assert isinstance(y.grad_fn._raw_saved_result.data, Tensor)  # type: ignore[attr-defined]  # not packed
    assert read(tmp_path / "run" / "a" / "summary.json")["cost"]["step_seconds"] is None


def test_a_failure_before_training_is_on_file_too(tmp_path: Path) -> None:
    class Missing(Digits):
        def setup(self, stage: str) -> None:
            raise FileNotFoundError("no such data set")

    with pytest.raises(FileNotFoundError):
        make_trainer(tmp_path, CostMonitor()).fit(Net(), Missing())
    summary = read(tmp_path / "run" / "a" / "summary.json")
    assert (summary["status"], summary["error"]) == ("failed", "FileNotFoundError: no such data set")


def test_a_running_fit_can_be_watched(tmp_path: Path) -> None:
    seen = []

    class Watching(Net):
        def on_train_epoch_start(self) -> None:
            summary = read(tmp_path / "run" / "a" / "summary.json")
            seen.append((summary["status"], summary["progress"]["epochs"]))

    make_trainer(tmp_path, CostMonitor()).fit(Watching(), Digits())
    assert seen == [("running", 0), ("running", 1)]


def test_a_later_test_joins_the_summary_of_the_fit(tmp_path: Path) -> None:
    model, data = Net(), Digits()
    make_trainer(tmp_path, CostMonitor(), logger=False).fit(model, data)
    fitted = read(tmp_path / "summary.json")
    make_trainer(tmp_path, CostMonitor(), logger=False).test(model, data, verbose=False)
    tested = read(tmp_path / "summary.json")
    assert tested["cost"] == fitted["cost"]
    assert tested["metrics"] == fitted["metrics"] | {"test/accuracy": tested["metrics"]["test/accuracy"]}


@pytest.mark.parametrize("first", [True, False])
def test_costs_go_into_a_summary_that_is_there_and_resumed_steps_count(tmp_path: Path, first: bool) -> None:
    def fit(epochs: int, ckpt_path: Path | None = None) -> dict[str, Any]:
        callbacks = [RunSummary("own.json"), CostMonitor(warmup_steps=0)]
        trainer = make_trainer(tmp_path, *(callbacks if first else callbacks[::-1]), logger=False, max_epochs=epochs)
        trainer.fit(Net(), Digits(), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return read(tmp_path / "own.json")

    whole = fit(1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    for state in checkpoint["callbacks"].values():
        state |= {"fit_seconds": 1000.0} if "fit_seconds" in state else {}
    torch.save(checkpoint, tmp_path / "slow.ckpt")
    resumed = fit(3, tmp_path / "slow.ckpt")
    assert whole["fit_seconds"] < 1000 < resumed["fit_seconds"]
    assert (whole["cost"]["steps_timed"], resumed["cost"]["steps_timed"]) == (STEPS - 1, 3 * STEPS - 1)
    assert resumed["started"] == whole["started"] and resumed["progress"]["steps"] == 3 * STEPS
    assert whole["cost"]["held_bytes"] == HELD and not (tmp_path / "summary.json").exists()


def test_a_summary_without_a_monitor_has_no_costs(tmp_path: Path) -> None:
    make_trainer(tmp_path, RunSummary(), logger=False).fit(Net(), Digits())
    summary = read(tmp_path / "summary.json")
    assert (summary["status"], summary["cost"], summary["progress"]["steps"]) == ("finished", {}, 2 * STEPS)


def test_the_largest_of_several_backward_passes_counts(tmp_path: Path) -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            for images, labels in ((batch[0][:1], batch[1][:1]), batch, (batch[0][:2], batch[1][:2])):
                self.optimizers().zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self.model(images), labels))
                self.optimizers().step()

    make_trainer(tmp_path, CostMonitor(), logger=False).fit(Manual(), Digits())
    assert read(tmp_path / "summary.json")["cost"]["held_bytes"] == HELD


def test_not_a_number_is_written_as_valid_json(tmp_path: Path) -> None:
    class Diverging(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train/ratio", loss * float("nan"))
            return loss

    make_trainer(tmp_path, CostMonitor(), logger=False).fit(Diverging(), Digits())
    text = (tmp_path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert summary["metrics"]["train/ratio"] == "nan"


def test_a_file_that_cannot_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "summary.json").mkdir()
    trainer = make_trainer(tmp_path, CostMonitor(), logger=False)
    with pytest.warns(UserWarning, match="could not be written"):
        trainer.fit(Net(), Digits())
    assert trainer.global_step == 2 * STEPS


def test_only_rank_zero_of_two_processes_writes(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "from test_monitor import *\n"
        "import randbp.callbacks.run_summary as writer\n"
        "write = writer.write_json\n"
        "def noted(path, value):\n"
        "    with open('writers', 'a') as file: print(trainer.global_rank, file=file)\n"
        "    write(path, value)\n"
        "writer.write_json = noted\n"
        "trainer = make_trainer(Path('.'), CostMonitor(), logger=False, max_epochs=1, strategy='ddp', devices=2)\n"
        "trainer.fit(Net(), Digits()); trainer.test(verbose=False, ckpt_path=None, model=trainer.model, "
        "datamodule=Digits())\n"
    )
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert set((tmp_path / "writers").read_text().split()) == {"0"}
    summary = read(tmp_path / "summary.json")
    assert summary["status"] == "finished"
    assert summary["run"]["devices"] == 2
    assert summary["progress"]["steps"] == -(-STEPS // 2)
