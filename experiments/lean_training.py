"""Train on Fashion-MNIST, exact and with presets, and say whether the test accuracy differs.

``python -m experiments lean-training``: ResNet-18 with the CIFAR stem, 1,000 steps of 64 images, one cycle of the
learning rate up to 0.08, five seeds; ``--network six-layers`` is a network of six Conv-BN-ReLU layers instead. Accuracy
of each run is printed as it comes and written to ``runs/lean_training.jsonl``; a run that is written with the same
options is not done again, so an interrupted experiment goes on, and one with more seeds or settings only adds to it.
Runs of one seed start from the same weights and see the same images, so settings are compared with exact seed by seed:
the mean difference with its interval of 95 %, and the p-value of a paired t-test, two-sided.

A step of ResNet-18 takes 2.3 s of one core, one of six layers 0.2 s; ``--width 0.5`` a quarter of the arithmetic, and
``--quick`` shows in a minute that it works.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from experiments.models import ResNet18
from experiments.models.small_vgg import SmallVGG
from experiments.short_training import (
    Row,
    accuracy,
    all_runs,
    gradients_of,
    one_cycle_sgd,
    options_parser,
    paired_difference,
    trained,
)
from randbp import Rounding, Spatial

EIGHTH = Spatial(keep=1 / 8)
SETTINGS: dict[str, dict[str, Any] | None] = {
    "exact": None,
    "preset exact": {"preset": "exact"},
    "preset memory": {"preset": "memory"},
    "preset memory, 2 bits": {"preset": "memory", "bits": 2},
    "preset memory, 1 bit": {"preset": "memory", "bits": 1},
    "preset time": {"preset": "time"},
    "Spatial(1/8), lean": {"weight_vjp": EIGHTH, "lean": True},
    "the same in 4 bits": {"weight_vjp": Rounding(4, EIGHTH), "lean": True},
    "Spatial(1/4), lean": {"weight_vjp": Spatial(keep=1 / 4), "lean": True},
    "Spatial(1/2), lean": {"weight_vjp": Spatial(keep=1 / 2), "lean": True},
}
DEFAULT = ("exact", "preset memory", "preset memory, 2 bits")
QUICK = {"width": 0.125, "steps": 20, "batch": 32, "test_images": 500, "seeds": 2}


def resnet18(width: float) -> nn.Module:
    """ResNet-18 for small grey images."""
    return ResNet18(10, in_channels=1, stem="cifar", width=width)


def six_layers(width: float) -> nn.Module:
    """Six Conv-BN-ReLU layers of 32, 64 and 128 channels."""
    return SmallVGG(10, in_channels=1, width=round(32 * width))


NETWORKS: dict[str, Callable[[float], nn.Module]] = {"resnet-18": resnet18, "six-layers": six_layers}


def main(argv: Sequence[str]) -> int:
    """Do the runs that are missing, then report all with these options."""
    parser = options_parser("lean-training", __doc__, steps=1000, batch=64, width=1.0, seeds=5, test_images=10_000)
    parser.add_argument("--network", choices=NETWORKS, default="resnet-18", help="what is trained (default: resnet-18)")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=DEFAULT, metavar="SETTING", help=f"of {', '.join(SETTINGS)}"
    )
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK}, to see that it works")
    options = vars(parser.parse_args(argv))
    if options.pop("quick"):
        options |= QUICK
    seeds, settings, output = (options.pop(name) for name in ("seeds", "settings", "output"))
    chosen = {setting: SETTINGS[setting] for setting in settings}
    rows = all_runs(chosen, seeds, output, options, run, _figures)
    for line in summary(rows):
        print(line)
    return 0


def _figures(row: Row) -> str:
    return f"accuracy {row['accuracy']:.4f}, {row['seconds']:.0f} s"


def summary(rows: list[Row]) -> list[str]:
    """Per setting the mean accuracy and, over the seeds that exact has, too, the difference from exact.

    Example:
        >>> rows = [{"setting": "exact", "seed": seed, "accuracy": 0.9} for seed in range(3)]
        >>> rows += [{"setting": "lean", "seed": seed, "accuracy": 0.89 + seed / 1000} for seed in range(3)]
        >>> print(*summary(rows), sep="\\n")
        exact                   90.00 %, 90.00 to 90.00
        lean                    89.10 %, 89.00 to 89.20; from exact -0.90 points (-1.15 to -0.65), p = 0.004, 3 seeds
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["setting"], {})[row["seed"]] = 100 * row["accuracy"]
    exact, lines = found.get("exact", {}), []
    for setting, values in found.items():
        line = f"{setting:23} {mean(values.values()):.2f} %, {min(values.values()):.2f} to {max(values.values()):.2f}"
        found_difference = paired_difference(values, exact)
        if setting != "exact" and found_difference is not None:
            difference, p, count = found_difference
            line += (
                f"; from exact {difference.estimate:+.2f} points ({difference.low:+.2f} to {difference.high:+.2f}), "
                f"p = {p:.3f}, {count} seeds"
            )
        lines.append(line)
    return lines


def run(
    arguments: dict[str, Any] | None,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    network: str,
    width: float,
    steps: int,
    batch: int,
    test_images: int,
) -> Row:
    """One training by :func:`one_cycle_sgd`."""
    torch.manual_seed(seed)
    model = NETWORKS[network](width)
    optimizer, schedule = one_cycle_sgd(model)
    with nullcontext() if arguments is None else randbp.randomize(model, seed=seed, **arguments) as handle:
        criterion = F.cross_entropy if handle is None else handle.lean()(F.cross_entropy)
        row = trained(gradients_of(model, criterion), optimizer, seed, train, steps, batch, schedule)
    return row | {"accuracy": accuracy(model, *(part[:test_images] for part in test), 100)}
