"""A Trainer that shards its module over two processes by FSDP2."""

import os
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from randbp import Importance
from randbp.callbacks import TensorDropout


class Sharded(pl.LightningModule):
    """A small network whose layers are sharded, as Lightning's documentation does it."""

    def __init__(self, sharded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        self.sharded = sharded

    def configure_model(self) -> None:
        if self.sharded:
            for layer in (self.layers[0], self.layers[2], self.layers[4], self.layers):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(sharded: bool, **options: Any) -> dict[str, Tensor]:
    """The weights after some steps, all of them in each process."""
    module = Sharded(sharded)
    callback = TensorDropout(Importance(0.5), Importance(0.5), layers="*", seed=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet, **options
    )
    data = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, DataLoader(TensorDataset(data), 4))
    full = {}
    for name, parameter in module.named_parameters():
        assert isinstance(parameter, DTensor) == sharded
        full[name] = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return full


def compare_trainers(rank: int, processes: int, port: int) -> None:
    """One of the processes: FSDP2 gives what DDP does."""
    told = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": processes,
        "NODE_RANK": 0,
        "LOCAL_RANK": rank,
    }
    os.environ.update({name: str(value) for name, value in told.items()})  # so that Lightning starts no process
    copied = fit(False, strategy="ddp", devices=processes)
    spread = ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    sharded = fit(True, strategy=spread, devices=processes)
    for name, value in sharded.items():
        torch.testing.assert_close(value, copied[name], rtol=1e-4, atol=1e-6)
