"""Train All-CNN-C on Fashion-MNIST with SGD at several learning rates and with K-FAC, for a fixed number of steps.

``python -m experiments second-order``: test accuracy, loss and seconds of each run, printed as they come and written to
``runs/second_order.jsonl``; a run that is written with the same options is not done again. Runs of one seed start from
the same weights and see the same images. The default, a quarter of the channels for 150 steps of 128 images, takes 6
minutes on two cores.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from experiments.models import AllCNNC
from experiments.short_training import Row, accuracy, all_runs, gradients_of, options_parser, trained
from randbp.curvature import KFAC

DECAY = 5e-4


def _sgd(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=DECAY)


def _kfac(approximation: Any, model: nn.Module) -> torch.optim.Optimizer:
    return KFAC(model, lr=0.05, weight_decay=DECAY, approximation=approximation)


SETTINGS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    **{f"SGD({rate:g})": partial(_sgd, rate) for rate in (0.01, 0.02, 0.05, 0.1)},
    "KFAC, reduce": partial(_kfac, "reduce"),
    "KFAC, expand": partial(_kfac, "expand"),
}


def main(argv: Sequence[str]) -> int:
    """Do the runs that are missing, then report all with these options."""
    options = vars(options_parser("second-order", __doc__, steps=150, batch=128).parse_args(argv))
    seeds, output = options.pop("seeds"), options.pop("output")
    rows = all_runs(SETTINGS, seeds, output, options, run, lambda row: _figures([row]))
    for setting in SETTINGS:
        print(f"{setting:20} mean:   {_figures([row for row in rows if row['setting'] == setting])}")
    return 0


def _figures(rows: Sequence[Row]) -> str:
    accuracy, loss, seconds = (mean(row[key] for row in rows) for key in ("accuracy", "loss", "seconds"))
    return f"accuracy {accuracy:.4f}, loss {loss:.3f}, {seconds:.0f} s"


def run(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    width: float,
    steps: int,
    batch: int,
    test_images: int,
) -> Row:
    """One training."""
    torch.manual_seed(seed)
    model = AllCNNC(10, in_channels=1, width=width, dropout=False)
    row = trained(gradients_of(model), make(model), seed, train, steps, batch)
    return row | {"accuracy": accuracy(model, *(part[:test_images] for part in test), 500)}
