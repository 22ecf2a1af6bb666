"""A training whose keep rates are chosen on the way, by Lightning and ``VarianceControl``."""

import time
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from experiments.short_training import Row
from randbp.callbacks import TensorDropout, VarianceControl
from randbp.estimators.keep_rate import with_keep_rate
from randbp.randomize.current import exchange, randomized_layers
from randbp.randomize.layers import layer_state
from randbp.tune.rate_allocation import RATES

Rates = Mapping[str, Mapping[str, float]]
"""Keep rates by layer and VJP."""


def train_controlled(
    model: nn.Module,
    budget: float,
    estimators: Mapping[str, Any],
    layers: str | None,
    batches: Sequence[Tensor],
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    seed: int,
) -> Row:
    """Train on batches of these numbers: mean rates, added over minibatch variance, measurements' passes per step.

    The ratio is of all measurements but the first, before which nothing is added.
    """
    control, means = VarianceControl(budget, seed=seed), _MeanRates()
    dropout = TensorDropout(**estimators, layers=f"model.{layers}" if layers else None, seed=seed)
    loader = DataLoader(TensorDataset(*data), batch_sampler=[index.tolist() for index in batches])
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[dropout, control, means], logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    means.control, module, start = control, _Module(model, optimizer, schedule), time.perf_counter()
    trainer.fit(module, loader)
    told = {"seconds": time.perf_counter() - start, "loss": mean(module.losses[-20:])}
    later = control.history[1:]
    ratio = sum(each["added"] for each in later) / max(1e-300, sum(each["minibatch"] for each in later))
    passes = len(control.history) * (control.draws + control.passes) / len(batches)
    return told | {"rates": means.means, "ratio": ratio if later else None, "passes": passes}


def set_rates(model: nn.Module, rates: Rates) -> None:
    """Give a model whose layers have estimators the nearest rates that ``VarianceControl`` chooses from."""
    for name, layer in randomized_layers(model).items():
        for vjp, rate in rates.get(f"model.{name}", {}).items():
            nearest = min(RATES, key=lambda each: abs(each - rate))
            exchange(layer, **{vjp: with_keep_rate(getattr(layer_state(layer), vjp), nearest)})


class _Module(LightningModule):
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        super().__init__()
        self.model, self._made = model, (optimizer, schedule)
        self.losses: list[float] = []  # measurements' too, of which there are few

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self._made
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _MeanRates(Callback):
    """Means over the batches so far."""

    control: VarianceControl

    def __init__(self) -> None:
        self.means: dict[str, dict[str, float]] = {}
        self._batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.control.rates:
            return
        self._batches += 1
        for name, rates in self.control.rates.items():
            own = self.means.setdefault(name, dict.fromkeys(rates, 0.0))
            for vjp, rate in rates.items():
                own[vjp] += (rate - own[vjp]) / self._batches
