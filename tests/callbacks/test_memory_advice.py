"""Memory runs out in a training: the exception says what the step would take, and what fits."""

import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from randbp.callbacks import CostMonitor, TensorDropout
from randbp.diagnostics import StepPeak, held_for_backward
from randbp.text.units import parse_bytes
from tests.callbacks.test_monitor import make_trainer

COUNT = 64
LAYERS = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}
ROOM = 2**22
"""Bytes that the limited network may hold for its backward pass."""


@dataclass
class Seen:
    """Sizes of all batches, and how many tensors of the failed one were alive in a later one."""

    sizes: list[int] = field(default_factory=list)
    made: list["weakref.ref[Tensor]"] = field(default_factory=list)
    alive: int = 0


class Limited(nn.Sequential):
    """Refuses to hold more than :data:`ROOM`, as a device would."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        blocks = [each for _ in range(4) for each in (nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU())]
        super().__init__(nn.Conv2d(1, 16, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.seen, self.room = Seen(), ROOM

    def forward(self, input: Tensor) -> Tensor:
        with held_for_backward(self.parameters()) as held:
            for layer in self:
                input = layer(input)
                self.seen.made.append(weakref.ref(input))
                if held.bytes > self.room:
                    raise torch.OutOfMemoryError(f"CUDA out of memory: {held.bytes} of {self.room} bytes")
        return input


class Greedy(Limited):
    """Asks for more memory than there is in the world, for batches of more than four examples."""

    def forward(self, input: Tensor) -> Tensor:
        self.room = 2**60
        return super().forward(input) + (torch.empty(2**60).sum() if len(input) > 4 else 0)


class Training(LightningModule):
    def __init__(self, model: Limited) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        seen = self.model.seen
        if seen.sizes == [COUNT]:  # that step has failed
            seen.alive = sum(made() is not None for made in seen.made)
        seen.sizes.append(len(batch[0]))
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def note_of(folder: Path, training: Training, *callbacks: Any) -> tuple[BaseException, str]:
    data = TensorDataset(torch.rand(COUNT, 1, 16, 16), torch.arange(COUNT) % 5)
    trainer = make_trainer(folder, CostMonitor(), *callbacks, max_epochs=1)
    with pytest.raises(RuntimeError) as caught:
        trainer.fit(training, DataLoader(data, COUNT))
    (note,) = caught.value.__notes__
    return caught.value, note


@pytest.mark.parametrize("make", [Limited, Greedy])
def test_an_exception_says_what_the_step_takes_and_what_fits(make: type[Limited], tmp_path: Path) -> None:
    training = Training(make())
    error, note = note_of(tmp_path, training, TensorDropout(preset="time"))
    assert ("CUDA" if make is Limited else "DefaultCPUAllocator") in str(error)
    seen = training.model.seen
    assert seen.sizes[0] == COUNT and set(seen.sizes[1:]) == {2, 4} and seen.alive == 0
    assert "log" not in vars(training) and {type(each) for each in list(training.model)[:12]} == LAYERS
    rows = {line.split()[0]: line.split() for line in note.splitlines() if "B " in line and ":" not in line}
    told = {name: parse_bytes("memory", "".join(cells[1:3])) for name, cells in rows.items()}
    assert told["memory"] < told["exact"] < told["plain"]
    training.model.room = 2**60
    batch = torch.rand(COUNT, 1, 16, 16), torch.arange(COUNT) % 5
    with StepPeak("cpu") as peak:
        nn.functional.cross_entropy(Limited.forward(training.model, batch[0]), batch[1]).backward()
    assert 0.9 < (peak.bytes + batch[0].nbytes) / told["plain"] < 1.1
