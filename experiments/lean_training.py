"""Train ResNet-18 with batch normalisation on Fashion-MNIST, exact and lean, for a fixed number of steps.

``python -m experiments lean-training``: test accuracy of each seed, printed as it comes and written to
``runs/lean_training.jsonl``; a run that is written with the same options is not done again. Runs of one seed start from
the same weights and see the same images. The default, a quarter of the channels for 300 steps of 32 images, takes about
20 minutes on one core; ``--width 1 --steps 2000`` is the real thing on a larger machine.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import randbp
from experiments.models import ResNet18
from experiments.short_training import Row, accuracy, all_runs, options_parser, trained
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
    parser = options_parser("lean-training", __doc__, steps=300, batch=32)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=DEFAULT, metavar="SETTING", help=f"of {', '.join(SETTINGS)}"
    )
    options = vars(parser.parse_args(argv))
    seeds, settings, output = (options.pop(name) for name in ("seeds", "settings", "output"))
    chosen = {setting: SETTINGS[setting] for setting in settings}
    rows = all_runs(chosen, seeds, output, options, run, _figures)
    for line in summary(rows):
        print(line)
    return 0


def _figures(row: Row) -> str:
    return f"accuracy {row['accuracy']:.4f}, {row['seconds']:.0f} s"


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
