"""Loss and accuracy against steps and seconds over keep rates.

``python -m experiments training-curves`` trains a network on Fashion-MNIST, exactly and with estimated weight VJPs of
several keep rates, all seeds with the same batches and first weights. Seconds are processor time, evaluation left out.
Runs that are written already are not done again.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from experiments.equal_time.settings import EXACT, NETWORKS, Setting, Training
from experiments.pages import table, write_pages
from experiments.short_training import Row, all_runs, one_cycle_sgd, options_parser, paired_difference
from experiments.training_curve import draw_curves, trained_curve
from randbp import Spatial
from randbp.diagnostics.significance import mean_interval

RATES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
SETTINGS = {EXACT: Setting()} | {f"Spatial({Fraction(keep)})": Setting({"weight_vjp": Spatial(keep)}) for keep in RATES}
QUICK = {"width": 0.125, "steps": 40, "batch": 32, "test_images": 300, "seeds": 3}


def main(argv: Sequence[str]) -> int:
    """Do the trainings that are missing, and write the pages."""
    name = "training-curves"
    parser = options_parser(name, __doc__, steps=500, batch=64, width=0.5, seeds=5, test_images=2000)
    parser.set_defaults(output=Path("runs/training_curves"))
    parser.add_argument("--network", choices=NETWORKS, default="six-layers", help="what is trained (six-layers)")
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK}, to see that it works")
    options = vars(parser.parse_args(argv))
    quick, folder = (options.pop(key) for key in ("quick", "output"))
    options |= QUICK if quick else {}
    seeds = options.pop("seeds")
    rows = all_runs(SETTINGS, seeds, folder / "trainings.jsonl", options, run, _told)
    found = {name: [row for row in rows if row["setting"] == name] for name in SETTINGS}
    draw_curves(folder / "training_curves", {name: [row["curve"] for row in runs] for name, runs in found.items()})
    blocks = [
        "Means over seeds with 95 % intervals; differences from exact training, seed by seed.",
        "![Loss and accuracy against steps and against processor seconds, one line per keep rate with its interval]"
        "(training_curves.png)",
        _table(found),
    ]
    command = f"{name}{' --quick' if quick else ''}"
    options = options | {"seeds": seeds}
    for line in [blocks[-1], *write_pages(folder / "training_curves.md", "Training curves", command, options, blocks)]:
        print(line)
    return 0


def run(
    setting: Setting,
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
    """One training with one-cycle SGD."""
    torch.manual_seed(seed)
    model = NETWORKS[network].build(width)
    optimizer, schedule = one_cycle_sgd(model)
    training = Training(model, setting, NETWORKS[network].layers, seed)
    some = (test[0][:test_images], test[1][:test_images])
    with training.around:
        return trained_curve(model, training.gradients, optimizer, seed, train, some, steps, batch, schedule)


def _told(row: Row) -> str:
    return f"accuracy {row['accuracy']:.4f}, loss {row['loss']:.3f}, {row['seconds']:.0f} s"


def _table(found: dict[str, list[Row]]) -> str:
    lines = []
    for name, rows in found.items():
        accuracies = {row["seed"]: 100 * row["accuracy"] for row in rows}
        exact = {row["seed"]: 100 * row["accuracy"] for row in found[EXACT]}
        values = torch.tensor(list(accuracies.values()))
        reached, points = f"{values.mean():.2f}", ""
        if len(values) > 1:
            interval = mean_interval(values, 0.95)
            reached += f" ({interval.low:.2f} to {interval.high:.2f})"
        if name != EXACT and (difference := paired_difference(accuracies, exact)) is not None:
            points = f"{difference[0].estimate:+.2f} ({difference[0].low:+.2f} to {difference[0].high:+.2f})"
        loss, seconds = (sum(row[key] for row in rows) / len(rows) for key in ("loss", "seconds"))
        lines.append([name, reached, points, f"{loss:.3f}", f"{seconds:.1f}"])
    return table(["weight VJP", "accuracy in %", "points from exact", "loss", "processor seconds"], lines)
