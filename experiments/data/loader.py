"""Batches of in-memory tensors in an order that a resumed run repeats."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Transform = Callable[[Tensor, torch.Generator], Tensor]


class Loader:
    """Iterate over (inputs, labels) batch by batch.

    Shuffling and augmentation depend on the seed, the epoch and the batch's number alone, never on PyTorch's
    global generator. ``state_dict`` says where in the epoch the iteration stands, and Lightning puts it into its
    checkpoints: a run that is resumed, even in the middle of an epoch, sees exactly the batches that the
    interrupted run would have seen. In training every batch has the same size (the incomplete last one is left
    out) and processes take every ``world_size``-th batch's worth of samples.

    Args:
        inputs: samples along dimension 0, of any type.
        labels: their labels.
        batch_size: samples per batch and process.
        transform: maps a batch of inputs (and a generator to draw augmentations from) to the network's input.
        shuffle: whether to draw a new order each epoch and to leave out the incomplete last batch.
        seed: of the order and of the augmentation.
        rank: this process's number; used if ``shuffle``.
        world_size: number of processes that share the samples; used if ``shuffle``.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        batch_size: int,
        transform: Transform,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shuffle and len(inputs) < batch_size * world_size:
            raise ValueError(
                f"batch_size must be at most {len(inputs) // world_size}, the training samples per process, "
                f"got {batch_size}"
            )
        self.inputs, self.labels = inputs, labels
        self.batch_size, self.transform = batch_size, transform
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._done = 0  # batches of this epoch that were handed out
        self._resume: tuple[int, int] | None = None  # (epoch, batches done) to go on from

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for the object whose ``set_epoch`` it calls at the start of each epoch."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return len(self.inputs) // (self.batch_size * self.world_size)
        return math.ceil(len(self.inputs) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # A generator runs its first line only when the first batch is asked for, which is after Lightning has
        # announced the epoch.
        start = 0
        if self._resume is not None:
            epoch, done = self._resume
            start = done if epoch == self.epoch else 0
            self._resume = None
        order = self._order()
        for number in range(start, len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            self._done = number + 1
            generator = self._generator(self.epoch, 1 + self.rank, number)
            yield self.transform(self.inputs[index], generator), self.labels[index]

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands."""
        return {"seed": self.seed, "epoch": self.epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, in the order of the interrupted run."""
        self.seed = state["seed"]
        self._resume = (state["epoch"], state["done"])

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.inputs))
        order = torch.randperm(len(self.inputs), generator=self._generator(self.epoch))
        return order[self.rank :: self.world_size]

    def _generator(self, *key: int) -> torch.Generator:
        """A generator for one purpose: its seed is a hash of the loader's seed and of the numbers given."""
        state = self.seed
        for part in key:  # splitmix64's finaliser, so that neighbouring numbers give unrelated streams
            state = (state + 0x9E3779B97F4A7C15 * (part + 1)) % 2**64
            state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
            state ^= state >> 31
        return torch.Generator().manual_seed(state % 2**63)
