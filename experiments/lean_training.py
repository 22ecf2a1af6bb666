"""Train ResNet-18 with batch normalisation on Fashion-MNIST, exact and lean, for a fixed number of steps.

``python -m experiments lean-training``: test accuracy of each seed, printed as it comes and written to
``runs/lean_training.jsonl``; a run that is written with the same options is not done again. Runs of one seed start from
the same weights and see the same images. The default, a quarter of the channels for 300 steps of 32 images, takes about
20 minutes on one core; ``--width 1 --steps 2000`` is the real thing on a larger machine.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import randbp
from experiments.data.fashion_mnist import FashionMNIST
from experiments.models import ResNet18
from experiments.short_training import Row, accuracy, prepared, trained, written
from randbp import Rounding, Spatial

EIGHTH = Spatial(keep=1 / 8)
SETTINGS: dict[str, dict[str, Any] | None] = {
    "exact": None,
    "Spatial(1/8), lean": {"weight_vjp": EIGHTH, "lean": True},
    "the same in 4 bits": {"weight_vjp": Rounding(4, EIGHTH), "lean": True},
    "Spatial(1/4), lean": {"weight_vjp": Spatial(keep=1 / 4), "lean": True},
    "Spatial(1/2), lean": {"weight_vjp": Spatial(keep=1 / 2), "lean": True},
    "Rounding(4), lean": {"weight_vjp": Rounding(4), "lean": True},
}
DEFAULT = tuple(SETTINGS)[:3]


def main(argv: Sequence[str]) -> int:
    """Do the runs that are missing, then report all with these options."""
    parser = argparse.ArgumentParser(prog="python -m experiments lean-training", description=__doc__)
    parser.add_argument("--width", type=float, default=0.25, help="multiplies the channels (default: 0.25)")
    parser.add_argument("--steps", type=int, default=300, help="of each run (default: 300)")
    parser.add_argument("--batch", type=int, default=32, help="images per step (default: 32)")
    parser.add_argument("--test-images", type=int, default=5000, help="of 10000 (default: 5000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per setting (default: 3)")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=DEFAULT, metavar="SETTING", help=f"of {', '.join(SETTINGS)}"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/lean_training.jsonl"), help="one line per run")
    options = vars(parser.parse_args(argv))
    seeds, settings, output = (options.pop(name) for name in ("seeds", "settings", "output"))
    rows = [row for row in written(output) if row["options"] == options and row["seed"] < seeds]
    done = {(row["setting"], row["seed"]) for row in rows}
    train, test = (prepared(images.images, images.labels) for images in FashionMNIST().load())
    for seed in range(seeds):
        for setting in settings:
            if (setting, seed) in done:
                continue
            row = {"setting": setting, "seed": seed, "options": options}
            row |= run(SETTINGS[setting], seed, train, test, **options)
            rows.append(row)
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{setting:20} seed {seed}: accuracy {row['accuracy']:.4f}, {row['seconds']:.0f} s", flush=True)
    for line in summary(rows):
        print(line)
    return 0


def summary(rows: list[Row]) -> list[str]:
    """Per setting the mean accuracy, its range over seeds, and whether the mean lies within the exact one's range."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row["accuracy"])
    exact, lines = found.get("exact"), []
    for setting, values in found.items():
        middle = mean(values)
        line = f"{setting:20} mean {middle:.4f}, from {min(values):.4f} to {max(values):.4f}"
        if exact and setting != "exact":
            below, above = min(exact) - middle, middle - max(exact)
            where = f"{below:.4f} below" if below > 0 else "above" if above > 0 else "within"
            line += f", {where} the range of exact"
        lines.append(line)
    return lines


def run(
    arguments: dict[str, Any] | None,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    width: float,
    steps: int,
    batch: int,
    test_images: int,
) -> Row:
    """One training: SGD with momentum, the learning rate falling linearly to zero."""
    torch.manual_seed(seed)
    model = ResNet18(10, in_channels=1, stem="cifar", width=width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    with nullcontext() if arguments is None else randbp.randomize(model, seed=seed, **arguments):
        row = trained(model, optimizer, seed, train, steps, batch)
    return row | {"accuracy": accuracy(model, *(part[:test_images] for part in test), 100)}
