"""A checkpoint of the training state after the latest epoch, never missing and never torn."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .files import checked_filename, put_in_place

CHECKPOINTS = "checkpoints"


class LatestEpoch(Callback):
    """Keep a checkpoint of the latest finished epoch, from which a training continues bit for bit.

    It is written between two epochs and at the end of the training, after all that Lightning does at an epoch's end
    (metrics, schedules on a plateau) and before anything of the next one, which Lightning's own checkpoints of an
    epoch's end lack: a training resumed from one of these draws the order of a plain ``DataLoader`` anew. The file is
    written beside its place, synchronised to disk and renamed. What loggers hold back is written first.

    The callback must come before all others that act at the start of an epoch, since they will do so again, and
    :class:`~randbp.callbacks.random_state.RandomState` right after it. The checkpoint is in the folder ``checkpoints``
    of the run.
    """

    def __init__(self, filename: str = "last.ckpt") -> None:
        self.filename = checked_filename(filename)
        self.path: Path | None = None
        self._saving = self._resumed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, on all ranks at once because that takes a broadcast."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / CHECKPOINTS / self.filename

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state after the previous epoch, or continue as if this process had trained it."""
        resumed, self._resumed = self._resumed, False
        if resumed:
            # Lightning has restored everything. From here on its loops do what they do between two epochs: they count
            # batches from zero and make a new iterator of the data, now that the random states are those of the run.
            for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
                loop.on_iteration_done()
            trainer.fit_loop.epoch_loop.restarting = False
        elif trainer.current_epoch > 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state after the last epoch."""
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Say whether this state lies between two epochs; other checkpoints hold the callback's state as well."""
        return {"between_epochs": self._saving}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember which kind of checkpoint this is."""
        self._resumed = state_dict["between_epochs"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Undo Lightning's announcement of the next epoch, and forget where in its data the last one ended."""
        if self._saving:
            loop = checkpoint["loops"]["fit_loop"]
            for count in loop["epoch_progress"].values():
                count["ready"] = count["completed"]
            loop["state_dict"].pop("combined_loader", None)

    def _save(self, trainer: Trainer) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        assert self.path is not None
        for logger in trainer.loggers:
            logger.save()
        part = self.path.with_name(f".{self.path.name}.part")
        if trainer.is_global_zero and part.is_dir():  # of a process that was killed; parallel strategies write folders
            shutil.rmtree(part)
        self._saving = True
        try:
            trainer.save_checkpoint(part)
        finally:
            self._saving = False
        if trainer.is_global_zero:
            put_in_place(part, self.path)
        trainer.strategy.barrier("LatestEpoch")


def find_latest(folder: str | os.PathLike[str]) -> Path | None:
    """Find the checkpoint that a :class:`LatestEpoch` has left in a run's folder; ``None`` if there is none."""
    found = [Path(folder) / CHECKPOINTS / name for name in FILENAMES]
    found = [path for path in found if path.exists()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


FILENAMES = ("last.ckpt", "latest-epoch.ckpt")
"""Possible names of the checkpoint: the second is used if another callback writes ``last.ckpt``."""
