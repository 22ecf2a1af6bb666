"""TensorDropout on transposed convolutions and linear layers, in a real Trainer."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from randbp import Rounding, Spatial
from randbp.callbacks import TensorDropout
from tests.callbacks.test_tensor_dropout import StopAt, loader, trainer


class Denoiser(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 4, stride=2, padding=1)
        self.code = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.code(self.down(x).relu().movedim(1, -1)).relu().movedim(-1, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[0].clamp_min(0))
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


class Look(Callback):
    """Types of the layers while they train."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.types = [type(module).__name__ for module in pl_module.children()]


def fit(tmp_path: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> Denoiser:
    torch.manual_seed(0)
    module = Denoiser()
    run = trainer(tmp_path, *callbacks, **options)
    run.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["RandomizedConv2d", "Linear", "RandomizedConvTranspose2d"]),
        ("*", ["RandomizedConv2d", "RandomizedLinear", "RandomizedConvTranspose2d"]),
        (["code"], ["Conv2d", "RandomizedLinear", "ConvTranspose2d"]),
    ],
)
def test_layers_are_randomised_while_fitting(tmp_path: Path, layers: Any, expected: list[str]) -> None:
    look, exact = Look(), fit(tmp_path)
    estimated = fit(tmp_path, TensorDropout(Spatial(0.25), layers=layers), look)
    assert look.types == expected
    assert estimated.losses[0] == exact.losses[0] and estimated.losses[1:] != exact.losses[1:]
    assert [type(module) for module in estimated.children()] == [nn.Conv2d, nn.Linear, nn.ConvTranspose2d]
    assert estimated.losses[-1] < estimated.losses[0]


def test_keep_one_trains_bit_for_bit_as_without(tmp_path: Path) -> None:
    assert fit(tmp_path, TensorDropout(Spatial(1), Spatial(1), layers="*")).losses == fit(tmp_path).losses


def test_same_seed_same_run_and_a_resumed_one_goes_on_identically(tmp_path: Path) -> None:
    def dropout(seed: int = 3) -> TensorDropout:
        return TensorDropout(Rounding(4, Spatial(0.25)), Spatial(0.5), layers="*", seed=seed)

    whole, again, other = fit(tmp_path, dropout()), fit(tmp_path, dropout()), fit(tmp_path, dropout(4))
    assert whole.losses == again.losses != other.losses
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, dropout(), save, StopAt(5, RuntimeError("power cut")), enable_checkpointing=True)
    resumed = fit(tmp_path, dropout(), ckpt_path=tmp_path / "step=4.ckpt")
    assert resumed.losses == whole.losses[4:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_pattern_that_matches_nothing_names_both_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the convolutions 'down', 'up' or linear layers 'code'"):
        fit(tmp_path, TensorDropout(layers="decoder.*"))
