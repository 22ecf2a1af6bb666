"""K-BFGS in Lightning, which passes a closure."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from randbp.curvature import KBFGS

from .lightning_runs import Module, trainer
from .training import parameters

pytestmark = pytest.mark.filterwarnings("ignore")


class Learner(Module):
    def __init__(self, **options):
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Tanh()
        super().__init__(nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 64, 3)).double(), **options)

    def configure_optimizers(self):
        return KBFGS(self.network, 0.1, **self.options)


def loader(size):
    x = torch.randn(32, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.arange(32) % 3), batch_size=size)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_lightning_trains_and_resumes(tmp_path, micro_batches):
    options = {"accumulate_grad_batches": micro_batches, "gradient_clip_val": 1.0}
    whole, first, second = Learner(), Learner(), Learner()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False, **options).fit(whole, loader(8))
    half = trainer(tmp_path, max_epochs=1, **options)
    half.fit(first, loader(8))
    half.save_checkpoint(tmp_path / "one.ckpt")
    resumed = trainer(tmp_path, max_epochs=2, **options)
    resumed.fit(second, loader(8), ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert torch.equal(parameters(whole), parameters(second))
    assert not torch.equal(parameters(whole), parameters(first))
    state = whole.optimizers().optimizer.state[whole.network[0].weight]
    assert state["updates"] == 8 // micro_batches and state["step"].any()
