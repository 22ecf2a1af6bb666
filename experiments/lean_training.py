"""Train ResNet-18 with batch normalisation on Fashion-MNIST, exact and lean, for a fixed number of steps.

``python -m experiments lean-training``: test accuracy of each seed, printed as it comes and written to
``runs/lean_training.json``. Settings of one seed start from the same weights and see the same images.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import randbp
from experiments.data.fashion_mnist import FashionMNIST
from experiments.models import ResNet18
from randbp import Rounding, Spatial

EIGHTH = Spatial(keep=1 / 8)
SETTINGS: dict[str, dict[str, Any] | None] = {
    "exact": None,
    "Spatial(1/8), lean": {"weight_vjp": EIGHTH, "lean": True},
    "the same in 4 bits": {"weight_vjp": Rounding(4, EIGHTH), "lean": True},
}


def main(argv: Sequence[str]) -> int:
    """Parse options and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments lean-training", description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path("runs/lean_training.json"))
    options = parser.parse_args(argv)
    train, test = (prepared(images.images, images.labels) for images in FashionMNIST().load())
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for setting, arguments in SETTINGS.items():
            row = run(arguments, seed, train, test, options) | {"setting": setting, "seed": seed}
            rows.append(row)
            print(f"{setting:20} seed {seed}: accuracy {row['accuracy']:.4f}, {row['seconds']:.0f} s", flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps({"options": vars(options), "rows": rows}, indent=2, default=str))
    for setting in SETTINGS:
        found = [row["accuracy"] for row in rows if row["setting"] == setting]
        print(f"{setting:20} mean {mean(found):.4f}, from {min(found):.4f} to {max(found):.4f}")
    return 0


def prepared(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images of zero mean and unit variance over the data set."""
    return (images.float() / 255 - FashionMNIST.mean[0]) / FashionMNIST.std[0], labels


def run(
    arguments: dict[str, Any] | None,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One training: SGD with momentum, the learning rate falling linearly to zero."""
    torch.manual_seed(seed)
    model, generator = ResNet18(10, in_channels=1, stem="cifar"), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / options.steps)
    start, losses = time.perf_counter(), []
    with nullcontext() if arguments is None else randbp.randomize(model, seed=seed, **arguments):
        for _ in range(options.steps):
            index = torch.randint(len(train[1]), (options.batch,), generator=generator)
            loss = F.cross_entropy(model(train[0][index]), train[1][index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        images, labels = (part[: options.test_images] for part in test)
        right = torch.cat([model(part).argmax(1) for part in images.split(100)]) == labels
    return {"accuracy": right.float().mean().item(), "seconds": seconds, "losses": losses}
