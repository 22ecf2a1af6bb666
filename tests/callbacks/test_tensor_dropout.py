"""TensorDropout in a real Trainer."""

import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from randbp import Batch, Channels, Exact, IfFaster, Precision, Rounding, Spatial
from randbp.callbacks import TensorDropout
from randbp.callbacks.summary import describe_estimators


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten()
        )
        self.head = nn.Linear(72, 3)
        self.losses: list[float] = []
        self.evaluated: list[bool] = []

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.net(x)), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            x, y = (tensor.clone() for tensor in batch)
            grads = [torch.autograd.grad(self.step((x, y)), self.net[3].weight)[0] for _ in range(2)]
        self.evaluated.append(torch.equal(*grads))
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Denoiser(pl.LightningModule):
    """A convolution, a linear layer and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 4, stride=2, padding=1)
        self.code = nn.Linear(8, 8)
        self.up = nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        code = self.code(self.down(batch[0]).relu().movedim(1, -1)).relu()
        loss = nn.functional.mse_loss(self.up(code.movedim(-1, 1)), batch[0].clamp_min(0))
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


class Resumable(DataLoader):
    """A loader that goes on in the middle of an epoch, through the interface that Lightning asks loaders for."""

    given, skipped = 0, 0

    def __iter__(self) -> Any:
        skipped, self.skipped = self.skipped, 0
        self.given = skipped
        for batch in islice(super().__iter__(), skipped, None):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["given"]


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 1, 8, 8, generator=generator)
    return Resumable(TensorDataset(x, torch.arange(48) % 3), batch_size=8)


def trainer(tmp_path: Path, *callbacks: Callback, **options: Any) -> pl.Trainer:
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **{**settings, **quiet, **options})


def fit(tmp_path: Path, *callbacks: Callback, kind: Any = Module, ckpt_path: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    module = kind()
    validation = loader() if kind is Module else None
    run = trainer(tmp_path, *callbacks, **options)
    run.fit(module, loader(), validation, ckpt_path=ckpt_path, weights_only=True)
    return module


def of_convolutions(seed: int = 0) -> TensorDropout:
    return TensorDropout(Spatial(0.25), Spatial(0.5), seed=seed)


def of_all_layers(seed: int = 0) -> TensorDropout:
    return TensorDropout(Rounding(4, Spatial(0.25)), Spatial(0.5), layers="*", seed=seed)


def test_estimates_while_fitting_and_is_exact_in_validation(tmp_path: Path) -> None:
    seen: list[str] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(type(pl_module.net[3]).__name__)

    exact = fit(tmp_path)
    estimated = fit(tmp_path, TensorDropout(Spatial(0.25)), Look())
    assert set(seen) == {"RandomizedConv2d"}
    assert estimated.losses[0] == exact.losses[0] and estimated.losses[1:] != exact.losses[1:]
    assert estimated.evaluated == [True] * 12
    assert type(estimated.net[3]) is nn.Conv2d and "_randbp" not in vars(estimated.net[3])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["RandomizedConv2d", "Linear", "RandomizedConvTranspose2d"]),
        ("*", ["RandomizedConv2d", "RandomizedLinear", "RandomizedConvTranspose2d"]),
        (["code"], ["Conv2d", "RandomizedLinear", "ConvTranspose2d"]),
    ],
)
def test_chosen_layers_are_randomised_while_fitting(tmp_path: Path, layers: Any, expected: list[str]) -> None:
    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.types = [type(module).__name__ for module in pl_module.children()]

    look, exact = Look(), fit(tmp_path, kind=Denoiser)
    estimated = fit(tmp_path, TensorDropout(Spatial(0.25), layers=layers), look, kind=Denoiser)
    assert look.types == expected
    assert estimated.losses[0] == exact.losses[0] and estimated.losses[1:] != exact.losses[1:]
    assert [type(module) for module in estimated.children()] == [nn.Conv2d, nn.Linear, nn.ConvTranspose2d]
    assert estimated.losses[-1] < estimated.losses[0]


@pytest.mark.parametrize(
    ("kind", "dropout"),
    [
        (Module, lambda: TensorDropout(Spatial(1), Channels(1))),
        (Denoiser, lambda: TensorDropout(Spatial(1), Spatial(1), layers="*")),
    ],
)
def test_keep_one_trains_bit_for_bit_as_without(tmp_path: Path, kind: Any, dropout: Any) -> None:
    assert fit(tmp_path, dropout(), kind=kind).losses == fit(tmp_path, kind=kind).losses


@pytest.mark.parametrize(("kind", "dropout"), [(Module, of_convolutions), (Denoiser, of_all_layers)])
def test_same_seed_same_run_and_other_seed_other_run(tmp_path: Path, kind: Any, dropout: Any) -> None:
    first, again, other = (fit(tmp_path, dropout(seed), kind=kind).losses for seed in (3, 3, 4))
    assert first == again != other


class StopAt(Callback):
    def __init__(self, batch: int, error: BaseException) -> None:
        self.batch, self.error = batch, error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.batch:
            raise self.error


@pytest.mark.parametrize(
    ("kind", "dropout", "stop"),
    [*((Module, of_convolutions, stop) for stop in (3, 6, 8)), (Denoiser, of_all_layers, 4)],
)
def test_resumed_run_is_identical_to_uninterrupted(tmp_path: Path, kind: Any, dropout: Any, stop: int) -> None:
    whole = fit(tmp_path, dropout(), kind=kind, max_epochs=3)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    cut = StopAt(stop + 1, RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path, dropout(), save, cut, kind=kind, max_epochs=3, enable_checkpointing=True)
    resumed = fit(tmp_path, dropout(), kind=kind, ckpt_path=tmp_path / f"step={stop}.ckpt", max_epochs=3)
    assert resumed.losses == whole.losses[stop:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_settings_and_counter_are_in_the_checkpoint(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    fit(tmp_path, TensorDropout(Spatial(0.25), layers="net.3"), save, enable_checkpointing=True, max_epochs=1)
    key = TensorDropout(layers="net.3").state_key
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][key]
    assert state["batches"] == 6
    assert state["settings"]["weight_vjp"] == {
        "class": "Spatial",
        "keep": 0.25,
        "per_example": True,
        "center": True,
        "runs": True,
    }
    assert state["settings"]["layers"] == "net.3" and state["settings"]["seed"] == 0
    with pytest.warns(UserWarning, match="the checkpoint was written with"):
        fit(tmp_path, TensorDropout(Spatial(0.5), layers="net.3"), ckpt_path=tmp_path / "last.ckpt", max_epochs=2)


@pytest.mark.usefixtures("quick_races")
def test_a_preset_trains_as_its_arguments_do_and_resumes(tmp_path: Path) -> None:
    whole = fit(tmp_path, TensorDropout(preset="memory"))
    narrow = IfFaster(Precision())
    plain = TensorDropout(IfFaster(Precision(estimator=Rounding(4))), narrow, layers="*", lean=True)
    save = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TensorDropout: the checkpoint was written with")
        assert fit(tmp_path, plain, save, enable_checkpointing=True, max_epochs=1).losses == whole.losses[:6]
        resumed = fit(tmp_path, TensorDropout(preset="memory"), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.losses == whole.losses[6:]
    assert fit(tmp_path, TensorDropout(preset="exact")).losses == fit(tmp_path).losses
    with pytest.warns(UserWarning, match="the checkpoint was written with"):
        fit(tmp_path, TensorDropout(preset="memory", bits=2), ckpt_path=tmp_path / "last.ckpt")
    described = describe_estimators(trainer(tmp_path, TensorDropout(preset="memory", bits=2)))
    assert described is not None and described["weight_vjp"]["estimator"]["estimator"]["bits"] == 2
    assert [described[name] for name in ("layers", "preset", "lean", "bits")] == ["*", "memory", True, 2]


class Second:
    """A predicate whose text has its address in memory."""

    def __call__(self, name: str, module: nn.Module) -> bool:
        return name == "net.3"


def test_callbacks_for_different_layers_resume_side_by_side_and_without_a_warning(tmp_path: Path) -> None:
    def callbacks() -> list[TensorDropout]:
        first = TensorDropout(Spatial(0.25), layers=["net.0"])
        return [first, TensorDropout(Channels(0.5), layers=Second(), seed=1), TensorDropout({"head": Batch(0.5)})]

    whole = fit(tmp_path, *callbacks(), max_epochs=2)
    save = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    fit(tmp_path, *callbacks(), save, enable_checkpointing=True, max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TensorDropout: the checkpoint was written with")
        resumed = fit(tmp_path, *callbacks(), ckpt_path=tmp_path / "last.ckpt", max_epochs=2)
    assert resumed.losses == whole.losses[6:]


def test_an_estimator_within_another_is_named_in_the_checkpoint(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    fit(tmp_path, TensorDropout(Rounding(4, Batch(0.5))), save, enable_checkpointing=True, max_epochs=1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["TensorDropout"]
    inner = {"class": "Batch", "keep": 0.5, "bernoulli": False, "center": False}
    assert state["settings"]["weight_vjp"] | {"estimator": inner} == state["settings"]["weight_vjp"]
    estimators = describe_estimators(trainer(tmp_path, TensorDropout(Rounding(4, Batch(0.5)))))
    assert estimators is not None and estimators["weight_vjp"]["name"] == "Rounding"
    assert "class" not in estimators["weight_vjp"] and estimators["weight_vjp"]["estimator"] == inner


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_model_is_restored_after_an_exception(tmp_path: Path, error: BaseException) -> None:
    torch.manual_seed(0)
    module = Module()
    run = trainer(tmp_path, TensorDropout(), StopAt(2, error))
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        run.fit(module, loader())
    assert type(module.net[0]) is nn.Conv2d and "_randbp" not in vars(module.net[0])


def test_gradient_accumulation_draws_anew_for_each_micro_batch(tmp_path: Path) -> None:
    samples: list[Tensor] = []

    class Look(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            samples.append(pl_module.net[3].weight.grad.clone())

    x, y = torch.randn(1, 1, 8, 8).repeat(16, 1, 1, 1), torch.zeros(16, dtype=torch.long)
    module = Module()
    module.net[1] = nn.Identity()
    run = trainer(tmp_path, TensorDropout(Spatial(0.25)), Look(), max_epochs=1, accumulate_grad_batches=2)
    run.fit(module, DataLoader(TensorDataset(x, y), batch_size=8))
    first, second = samples[0], samples[1] - samples[0]
    assert not torch.allclose(first, second, rtol=1e-3)


def test_bad_settings_fail_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Batch serves only weight_vjp"):
        TensorDropout(input_vjp=Batch(0.5))
    for options, message in (
        ({"layers": []}, r"layers=\[\]: expected at least one"),
        ({"layers": lambda name: True}, "layers=<function .*: expected a predicate of two arguments"),
        ({"weight_vjp": {}}, "weight_vjp={}: expected at least one name"),
    ):
        with pytest.raises(ValueError, match=message):
            TensorDropout(**options)  # type: ignore[arg-type]
    module = Module()
    with pytest.raises(ValueError, match=r"layers='encoder\.\*': matches none of the convolutions 'net\.0', 'net\.3'"):
        trainer(tmp_path, TensorDropout(layers="encoder.*")).fit(module, loader())
    assert type(module.net[0]) is nn.Conv2d
    with pytest.raises(ValueError, match=r"none of the convolutions 'down', 'up' or linear layers 'code'"):
        fit(tmp_path, TensorDropout(layers="decoder.*"), kind=Denoiser)


class RecordSamples(Callback):
    """Write what each rank's layer draws with the same data on every rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        torch.save(list(pl_module.net[3]._randbp.clock.state.values[1:4]), self.folder / f"{trainer.global_rank}.pt")
        torch.save([p.detach() for p in pl_module.parameters()], self.folder / f"weights{trainer.global_rank}.pt")


def test_two_processes_draw_different_samples_and_stay_in_step(tmp_path: Path) -> None:
    module = Module()
    run = trainer(
        tmp_path,
        TensorDropout(Spatial(0.25), Exact()),
        RecordSamples(tmp_path),
        strategy="ddp_spawn",
        devices=2,
        max_epochs=1,
        limit_val_batches=0,
    )
    run.fit(module, loader())
    assert torch.load(tmp_path / "0.pt")[2] == 0 and torch.load(tmp_path / "1.pt")[2] == 1
    for left, right in zip(torch.load(tmp_path / "weights0.pt"), torch.load(tmp_path / "weights1.pt"), strict=True):
        assert torch.equal(left, right)
