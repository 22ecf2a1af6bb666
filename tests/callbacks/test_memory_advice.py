"""Memory runs out in a training: the exception says what fits."""

import gc
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from randbp.callbacks import CostMonitor, TensorDropout
from randbp.diagnostics.peak_memory import available_bytes
from tests.callbacks.test_monitor import make_trainer

ROOM = 3 * 2**27


class Wide(LightningModule):
    """Holds 4 MiB for each example."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [each for _ in range(4) for each in (nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU())]
        self.model = nn.Sequential(nn.Conv2d(1, 32, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.seen = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen += 1
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """Limit the address space of this process to what it has, and some room."""
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/status").read_text().splitlines()
    taken = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    try:
        assert 0 < (available_bytes(torch.device("cpu")) or 0) <= ROOM
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("_little_memory")
def test_an_exception_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("randbp.tune.advisor.TARGET", 2**25)  # for speed
    count, module = 128, Wide()
    data = DataLoader(TensorDataset(torch.ones(count, 1, 64, 64), torch.arange(count) % 5), count)
    trainer = make_trainer(tmp_path, CostMonitor(), TensorDropout(preset="time"), max_epochs=1)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        trainer.fit(module, data)
    (note,) = caught.value.__notes__
    sizes = {line.split()[0]: int(line.split()[-1].replace(",", "")) for line in note.splitlines() if "MiB   " in line}
    assert sizes["plain"] < sizes['preset="exact"'] < sizes['preset="memory"'] and sizes["plain"] < count
    assert "batch_norm" in note and "the given batch of 128" in note
    assert module.seen == 1 and "log" not in vars(module)  # the rest is as it was
    assert all(type(each) in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU) for each in module.model[:12])
