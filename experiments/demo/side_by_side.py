"""Train one network in several ways that take turns, step by step, in one process.

Trainings one after the other give no honest ratios of times, for the machine drifts. Here every way to train has a
Lightning ``Trainer`` in a thread of its own, and only one of them is at work at any moment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from experiments.data import ImageData
from experiments.models import SmallVGG
from experiments.task import Classification
from randbp.callbacks import CostMonitor
from randbp.diagnostics import StepPeak, StepTimer

from .compared import Way
from .turns import Pause, take_turns

WARMUP = 5  # steps that are not timed
TIMED = WARMUP + 10  # steps of what is only timed
COUNTED_EVERY = 12  # steps on which bytes are counted, which takes time; the optimiser's state is there from the second
CONVOLUTIONS = 1, 2, 2  # of each block of the network
HIGHEST_RATE = 0.002  # of learning, a quarter of the way through OneCycle
Trained = dict[str, Any]


class Turn(Callback):
    """Wait for one's turn before each optimiser step, and time the step.

    It comes before all other callbacks, so that their work at a batch's start and none of the waiting is timed.

    Args:
        pause: Returns when it is this training's turn.
        parts: Micro-batches of a step.

    Attributes:
        seconds: Of each step that was timed.
    """

    def __init__(self, pause: Pause, parts: int) -> None:
        self.pause, self.parts = pause, parts
        self.timer = StepTimer("cpu")
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.parts == 0:
            self.pause()
        self.timer.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.timer.stop()
        step = batch_idx // self.parts
        if (batch_idx + 1) % self.parts == 0 and step >= WARMUP and step % COUNTED_EVERY:
            self.seconds.append(sum(self.timer.seconds()[-self.parts :]))


def train_side_by_side(
    ways: Sequence[Way], data: ImageData, folder: Path, *, seed: int, steps: int, width: int
) -> dict[str, Trained]:
    """Train and test the network in all ways, from the same weights and with the same images in the same order.

    Those that are not to be trained take part in the first rounds, to be timed, and are not tested.

    Args:
        ways: The ways.
        data: The images; batches have ``data.batch_size`` of them.
        folder: Where each training leaves what it has cost.
        seed: Of weights, order of the images, and samples.
        steps: Of the optimiser, at most one epoch.
        width: Of the network.

    Returns:
        For each way the test accuracy (``None`` if it was only timed), bytes and times, and the trained network.
    """
    with StepPeak("cpu"):  # a profiler belongs to the thread that is the first to start one
        pass
    tasks = {way.name: _Training(way, data, folder / _plain(way.name), seed, steps, width) for way in ways}
    return take_turns(tasks, seed)


class _Training:
    """One way's training and test, as a task that takes turns."""

    def __init__(self, way: Way, data: ImageData, folder: Path, seed: int, steps: int, width: int) -> None:
        torch.manual_seed(seed)
        self.way, self.folder, self.steps, self.seed = way, folder, steps, seed
        network = SmallVGG(data.num_classes, len(data.mean), width, CONVOLUTIONS)
        self.module = Classification(network, data.num_classes, _optimizer, self._schedule, lr_interval="step")
        self.data = data

    def __call__(self, pause: Pause) -> Trained:
        turn, monitor = Turn(pause, self.way.parts), CostMonitor(0, COUNTED_EVERY * self.way.parts, "costs.json")
        trainer = Trainer(
            max_steps=self.steps if self.way.trained else min(TIMED, self.steps),
            max_epochs=1,
            accumulate_grad_batches=self.way.parts,
            callbacks=[turn, *self.way.callbacks(self.seed), monitor],
            default_root_dir=self.folder,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(self.module, self._loader())
        accuracy = None
        if self.way.trained:
            pause()
            [metrics] = trainer.test(self.module, self.data.test_dataloader(), verbose=False)
            accuracy = metrics["test/accuracy"]
        cost = monitor.summary["cost"]
        return {
            "accuracy": accuracy,
            "held_bytes": cost["held_bytes"],
            "peak_bytes": cost["peak_bytes"],
            "waiting_threads": cost["waiting_threads"],
            "seconds": turn.seconds,
            "network": self.module.model,
        }

    def _loader(self) -> Any:
        """The same images in the same order, whatever the number of micro-batches."""
        loader = self.data.train_dataloader()
        loader.seed, loader.batch_size = self.seed, loader.batch_size // self.way.parts
        return loader

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, HIGHEST_RATE, total_steps=self.steps, pct_start=0.25)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=HIGHEST_RATE, betas=(0.9, 0.95), weight_decay=0.01)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
