"""Train All-CNN-C on Fashion-MNIST with SGD at several learning rates and with K-FAC, for a fixed number of steps.

``python -m experiments second-order``: test accuracy, loss and seconds of each run, printed as they come and written to
``runs/second_order.jsonl``; a run that is written with the same options is not done again. Runs of one seed start from
the same weights and see the same images. The default, a quarter of the channels for 150 steps of 128 images, takes 6
minutes on two cores.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data.fashion_mnist import FashionMNIST
from experiments.models import AllCNNC
from experiments.short_training import Row, accuracy, prepared, trained, written
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
    parser = argparse.ArgumentParser(prog="python -m experiments second-order", description=__doc__)
    parser.add_argument("--width", type=float, default=0.25, help="multiplies the channels (default: 0.25)")
    parser.add_argument("--steps", type=int, default=150, help="of each run (default: 150)")
    parser.add_argument("--batch", type=int, default=128, help="images per step (default: 128)")
    parser.add_argument("--test-images", type=int, default=5000, help="of 10000 (default: 5000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per setting (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("runs/second_order.jsonl"), help="one line per run")
    options = vars(parser.parse_args(argv))
    seeds, output = options.pop("seeds"), options.pop("output")
    rows = [row for row in written(output) if row["options"] == options and row["seed"] < seeds]
    done = {(row["setting"], row["seed"]) for row in rows}
    train, test = (prepared(images.images, images.labels) for images in FashionMNIST().load())
    output.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for setting, make in SETTINGS.items():
            if (setting, seed) in done:
                continue
            row = {"setting": setting, "seed": seed, "options": options}
            row |= run(make, seed, train, test, **options)
            rows.append(row)
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{setting:14} seed {seed}: {_figures([row])}", flush=True)
    for setting in SETTINGS:
        print(f"{setting:14} mean:   {_figures([row for row in rows if row['setting'] == setting])}")
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
    row = trained(model, make(model), seed, train, steps, batch)
    return row | {"accuracy": accuracy(model, *(part[:test_images] for part in test), 500)}
