"""Random states in checkpoints: a resumed run draws the numbers that the interrupted one would have drawn."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves


class RandomState(Callback):
    """Keep the global random states, and those of the data loaders' generators, in the checkpoint.

    Layers like ``nn.Dropout`` and a ``DataLoader``'s order draw from PyTorch's generators, augmentations often from
    those of numpy and Python; Lightning saves none of them. Estimators of randbp need no such help. Of a run with
    several processes the state of each is saved; if it is resumed with another number of them, they start anew. States
    of worker processes that outlive an epoch (``persistent_workers=True``) are out of reach.
    """

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._states: list[dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the trainer, whose data loaders count."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes, by rank."""
        own = _read(self._trainer)
        if self._trainer is None or self._trainer.world_size == 1:
            return {"ranks": [own]}
        states: list[dict[str, Any]] = [{}] * self._trainer.world_size
        torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states until training starts."""
        self._states = state_dict.get("ranks")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states, after anything that resuming itself may have drawn."""
        self._restore(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states again, if nothing but hooks has run since."""
        self._restore(trainer)
        self._states = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Drop the states: the run has gone on."""
        self._states = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the states: the run has gone on."""
        if not trainer.sanity_checking:
            self._states = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the states after a training that was already over, for the test that follows."""
        self._restore(trainer)
        self._states = None

    def _restore(self, trainer: Trainer) -> None:
        if self._states is not None and len(self._states) == trainer.world_size:
            _write(trainer, self._states[trainer.global_rank])


def _read(trainer: Trainer | None) -> dict[str, Any]:
    """All states as plain data and tensors, which ``torch.load`` reads without trusting the file."""
    name, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)  # as the legacy format has it
    loaders = [] if trainer is None else [generator.get_state() for generator in _generators(trainer)]
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (name, keys.tolist(), *rest),
        "python": random.getstate(),
        "loaders": loaders,
    }


def _write(trainer: Trainer, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
    generators = list(_generators(trainer))
    if len(generators) == len(state["loaders"]):
        for generator, saved in zip(generators, state["loaders"], strict=True):
            generator.set_state(saved.cpu())


def _generators(trainer: Trainer) -> Iterator[torch.Generator]:
    """The generators of loaders and samplers of training and validation data, each once."""
    seen: set[int] = set()
    for loaders in (trainer.train_dataloader, trainer.val_dataloaders):
        for loader in tree_leaves(loaders):
            sampler = getattr(loader, "batch_sampler", None)
            for owner in (loader, getattr(loader, "sampler", None), sampler, getattr(sampler, "sampler", None)):
                generator = getattr(owner, "generator", None)
                if isinstance(generator, torch.Generator) and id(generator) not in seen:
                    seen.add(id(generator))
                    yield generator
