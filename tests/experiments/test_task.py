"""Classification in a real Trainer: learns, logs, and a resumed run repeats the uninterrupted one."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from experiments.data import Digits, GeneratedImages
from experiments.models import AllCNNC, DigitsCNN
from experiments.task import Classification
from randbp import Spatial
from randbp.callbacks import TensorDropout
from randbp.callbacks.random_state import RandomState

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def test_learns_digits_and_logs_every_metric(tmp_path):
    seed_everything(0, verbose=False)
    task = Classification(DigitsCNN(width=16), label_smoothing=0.1)
    trainer = Trainer(
        max_epochs=8,
        logger=CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        log_every_n_steps=1,
        **QUIET,
    )
    data = Digits(size=8, batch_size=64)
    trainer.fit(task, data)
    result = trainer.test(task, data, verbose=False)[0]
    assert result["test/accuracy"] > 0.9
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    counts = {name: sum(bool(row[name]) for row in rows) for name in rows[0]}
    assert counts["train/loss"] == 8 * 20  # each step
    assert counts["train/accuracy"] == counts["val/loss"] == counts["val/accuracy"] == 8  # each epoch
    assert counts["test/loss"] == counts["test/accuracy"] == 1

    # The logged numbers against a computation of one's own.
    with torch.no_grad():
        task.eval()
        images, labels = map(torch.cat, zip(*data.test_dataloader(), strict=True))
        logits = task(images)
    assert result["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert result["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    probabilities = torch.cat(trainer.predict(task, data))
    assert torch.allclose(probabilities, logits.softmax(1), atol=1e-6)


class Record(Callback):
    """The loss of each step and the training accuracy of each epoch."""

    def __init__(self):
        self.losses, self.accuracies = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = outputs["loss"].item()

    def on_train_end(self, trainer, pl_module):
        self.weights = [p.detach().clone() for p in pl_module.parameters()]
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_start(self, trainer, pl_module):
        self._keep(trainer)

    def on_fit_end(self, trainer, pl_module):
        self._keep(trainer)

    def _keep(self, trainer):
        if "train/accuracy" in trainer.logged_metrics:
            self.accuracies[trainer.global_step] = trainer.logged_metrics["train/accuracy"].item()


def train(folder: Path, checkpoints: list[Callback], resume: Path | None = None, **options) -> Record:
    # A resumed process would not have drawn what the interrupted one has drawn from the global generator.
    seed_everything(0 if resume is None else 1, verbose=False)
    data = GeneratedImages(
        size=16, channels=1, num_classes=4, train_size=36, test_size=8, batch_size=8, augment=True, seed=0
    )
    torch.manual_seed(0)
    task = Classification(
        AllCNNC(num_classes=4, in_channels=1, width=0.05),
        num_classes=4,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 3),
    )
    if resume is not None:
        torch.manual_seed(7)
    record = Record()
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=3,
        logger=False,
        callbacks=[TensorDropout(Spatial(keep=0.5)), RandomState(), record, *checkpoints],
        log_every_n_steps=1,
        **options,
        **QUIET,
    )
    trainer.fit(task, data, ckpt_path=resume)
    return record


STEPS_PER_EPOCH = {None: 4, 3: 3}


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize(
    "when",
    [
        {"every_n_train_steps": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "monitor": "val/loss"},  # after validation
    ],
    ids=["each step", "end of epoch", "end of validation"],
)
def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, when, limit):
    options = {} if limit is None else {"limit_train_batches": limit}
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **when)
    whole = train(tmp_path, [checkpoint], **options)
    total = 3 * STEPS_PER_EPOCH[limit]
    assert list(whole.losses) == list(range(1, total + 1))
    assert len(set(whole.losses.values())) == total  # dropout, augmentation and order: no two steps alike
    assert len(whole.accuracies) == 3

    saved = {int(path.stem.split("=")[1]): path for path in tmp_path.glob("*.ckpt")}
    assert len(saved) == (total if "every_n_train_steps" in when else 3)
    for step, path in saved.items():
        if step == total:
            continue
        resumed = train(tmp_path, [], resume=path, **options)
        tail = {s: loss for s, loss in whole.losses.items() if s > step}
        assert resumed.losses == tail, step
        assert all(torch.equal(a, b) for a, b in zip(resumed.weights, whole.weights, strict=True)), step
        assert resumed.learning_rate == whole.learning_rate
        late = {s: accuracy for s, accuracy in whole.accuracies.items() if s > step}
        assert resumed.accuracies | late == resumed.accuracies, step


def test_same_seed_same_run(tmp_path):
    first, second = train(tmp_path / "a", []), train(tmp_path / "b", [])
    assert first.losses == second.losses


def test_plateau_scheduler_watches_the_validation_loss(tmp_path):
    task = Classification(
        DigitsCNN(width=4),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e9),
    )
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=3, logger=False, limit_train_batches=1, **QUIET)
    trainer.fit(task, Digits(size=8))
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1


@pytest.mark.parametrize("options", [{"lr_interval": "week"}, {"label_smoothing": 1.0}])
def test_wrong_arguments_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Classification(DigitsCNN(width=4), **options)
