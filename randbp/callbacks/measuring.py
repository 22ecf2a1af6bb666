"""The base of callbacks that measure gradients every few steps, at a bounded cost."""

from abc import abstractmethod
from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_map_only

from ..draws.seeds import checked_seed
from ..layers.integers import as_integer

SHARE = 0.02
"""Of all forward and backward passes, those that measurements may take by default [1]."""


class Measuring(Callback):
    """Measure every ``every`` training batches, from batch number ``first`` on, with the batch before at hand.

    A measurement takes ``draws + passes`` forward and backward passes: exact gradients of two batches, and estimates.

    Args:
        every: Number of training batches between measurements; by default ``⌈(draws + passes) / 0.02⌉``.
        draws: Number of estimates per measurement.
        seed: Determines their samples.
    """

    first = 1  # the second batch
    passes = 2  # beside the estimates

    def __init__(self, every: int | None, draws: int, seed: int) -> None:
        self.draws = _at_least_one("draws", draws)
        self.every = ceil((self.draws + self.passes) / SHARE) if every is None else _at_least_one("every", every)
        self.seed = checked_seed(seed)
        self._batches = 0
        self._before: tuple[Any, int] | None = None
        self._saved: list[Any] | None = None  # of a checkpoint, by rank
        self._trainer: Trainer | None = None

    @abstractmethod
    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the layers when training starts."""

    @abstractmethod
    def measure(
        self, trainer: Trainer, module: LightningModule, batch: tuple[Any, int], before: tuple[Any, int]
    ) -> None:
        """Measure at a batch, given the one before; both with their indices."""

    def publish(self, trainer: Trainer, module: LightningModule) -> None:
        """Log what is known, on steps of which loggers take notice."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers."""
        if not pl_module.automatic_optimization:
            name = type(self).__name__
            raise ValueError(f"{name}: automatic_optimization=False, expected True: steps are run for their gradients")
        self._trainer = trainer
        self.start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure if it is time, or keep the batch if it is time at the next one."""
        now, self._batches = self._batches, self._batches + 1
        saved, self._saved = self._saved, None
        if saved is not None and len(saved) == trainer.world_size:
            self._before = saved[trainer.global_rank]
        before, self._before = self._before, None
        if self._due(now + 1):
            self._before = batch, batch_idx
        due = self._due(now)
        if due and before is not None:
            moved = pl_module.transfer_batch_to_device(before[0], pl_module.device, 0)
            self.measure(trainer, pl_module, (batch, batch_idx), (moved, before[1]))
        if due or is_logged(trainer):
            self.publish(trainer, pl_module)

    def _due(self, batch: int) -> bool:
        return batch >= self.first and (batch - self.first) % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        """The number of batches seen and, if the next batch is to be compared with it, the last one of each rank."""
        before = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), self._before)
        return {"batches": self._batches, "before": gathered(self._trainer, before)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._batches = state_dict["batches"]
        self._saved = state_dict["before"]


def is_logged(trainer: Trainer) -> bool:
    """Whether loggers take notice of what is logged in this step."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def gathered(trainer: Trainer | None, value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if trainer is None or trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def averaged(trainer: Trainer, numbers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Means over ranks of tensors by name: the same bits on all of them. Names that a rank has not count as absent."""
    ranks = gathered(trainer, {name: torch.as_tensor(value).double().cpu() for name, value in numbers.items()})
    names = {name: None for rank in ranks for name in rank}
    found = {name: [rank[name] for rank in ranks if name in rank] for name in names}
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


def _at_least_one(name: str, value: object) -> int:
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name}={value!r}: expected an integer, at least 1")
    return number
