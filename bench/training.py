"""Final test accuracy against the keep rate: how far can the weight gradients be estimated?

All-CNN-C (narrow, without dropout) on Fashion-MNIST padded to 32x32, one channel; SGD with momentum 0.9, a learning
rate that rises over the first tenth of the steps and falls to zero on a cosine, gradients clipped to norm 1 for all
alike. The weight VJPs of all convolutions are estimated, the input VJPs exact. Seeds fix the initial weights and the
order of the images, so runs of one seed differ in the estimator alone. The default is 300 steps of 32 images, a sixth
of an epoch, because 48 runs share one core (about half an hour); ``--steps`` trains longer.

Every finished run is written at once, and a run that is written is not done again.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import randbp
from experiments.data import FashionMNIST, ImageData
from experiments.models import AllCNNC
from randbp.estimators import Axes, Channels, Estimator, Exact, Spatial

from .harness import save, show
from .journal import Journal, Row

RATES = (1 / 8, 1 / 32, 1 / 2, 1 / 4, 1 / 16)
SEEDS = (0, 1, 2)
WITHIN = 0.5  # points of test accuracy
ESTIMATORS: dict[str, Callable[[float], Estimator]] = {
    "Spatial (default)": Spatial,
    "axes, Bernoulli": partial(Axes, bernoulli=True),
    "channels": Channels,
}
EXACT = "exact"


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    width: float = 0.25
    steps: int = 300
    batch: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    clip: float = 1.0


QUICK = Setting(width=0.05, steps=20)
KEYS = ("estimator", "keep", "seed", *Setting.__dataclass_fields__)


def train(estimator: Estimator, setting: Setting, data: ImageData, seed: int) -> Row:
    """One run: test accuracy, loss at the end, seconds."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AllCNNC(data.num_classes, in_channels=1, width=setting.width, dropout=False)
    optimizer = torch.optim.SGD(model.parameters(), setting.learning_rate, setting.momentum)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, setting.learning_rate, total_steps=setting.steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    with randbp.randomize(model, weight_vjp=estimator, seed=seed):
        for images, labels in islice(batches(data, seed), setting.steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(images).argmax(1) == labels for images, labels in data.test_dataloader()])
    return {
        "accuracy": 100 * float(right.double().mean()),
        "loss": mean(losses[-20:]),
        "seconds": time.perf_counter() - started,
    }


def batches(data: ImageData, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches without end, in an order of their own every epoch."""
    data.seed = seed
    loader = data.train_dataloader()
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


def runs() -> list[tuple[str, float, int]]:
    """Estimator, keep rate and seed of every run; one seed after the other, so that an early end is no loss."""
    return [
        run
        for seed in SEEDS
        for run in [(EXACT, 1.0, seed), *((name, keep, seed) for keep in RATES for name in ESTIMATORS)]
    ]


def summarise(rows: list[Row]) -> list[Row]:
    """Mean and standard deviation of accuracy, and of its difference to exact at the same seed."""
    exact = {row["seed"]: row["accuracy"] for row in rows if row["estimator"] == EXACT}
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["estimator"], row["keep"]), []).append(row)
    summary = []
    for (estimator, keep), found in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1])):
        accuracies = [row["accuracy"] for row in found]
        gaps = [row["accuracy"] - exact[row["seed"]] for row in found if row["seed"] in exact]
        summary.append(
            {
                "estimator": estimator,
                "keep": keep,
                "seeds": len(found),
                "accuracy": mean(accuracies),
                "std": stdev(accuracies) if len(found) > 1 else 0.0,
                "gap": mean(gaps) if gaps else None,
                "gap_std": stdev(gaps) if len(gaps) > 1 else 0.0,
            }
        )
    return summary


def smallest_within(summary: list[Row]) -> dict[str, float | None]:
    """Per estimator the smallest keep rate from which on all larger ones are within :data:`WITHIN` of exact."""
    found: dict[str, float | None] = {}
    for name in dict.fromkeys(row["estimator"] for row in summary if row["estimator"] != EXACT):
        found[name] = None
        for row in sorted((r for r in summary if r["estimator"] == name), key=lambda r: -r["keep"]):
            if row["gap"] is None or row["gap"] < -WITHIN:
                break
            found[name] = row["keep"]
    return found


def run(setting: Setting, data: ImageData | None = None) -> dict[str, Any]:
    """Do the runs that are missing, then report all of this setting."""
    data, journal = data or FashionMNIST(batch_size=setting.batch), Journal("training", KEYS)
    data.setup()
    for name, keep, seed in runs():
        row = {"estimator": name, "keep": keep, "seed": seed, **asdict(setting)}
        if row in journal:
            continue
        estimator = Exact() if name == EXACT else ESTIMATORS[name](keep)
        journal.add({**row, **(result := train(estimator, setting, data, seed))})
        print(f"{name}, p = {keep:g}, seed {seed}: {result['accuracy']:.2f} % in {result['seconds']:.0f} s", flush=True)
    rows = journal.rows(**asdict(setting))
    return report(rows, setting)


def report(rows: list[Row], setting: Setting) -> dict[str, Any]:
    """Print the table and the verdict, write JSON and figure."""
    summary = summarise(rows)
    table = [
        [
            row["estimator"],
            f"1/{round(1 / row['keep'])}" if row["keep"] < 1 else "1",
            f"{row['accuracy']:.2f} ± {row['std']:.2f}",
            "" if row["gap"] is None else f"{row['gap']:+.2f} ± {row['gap_std']:.2f}",
            str(row["seeds"]),
        ]
        for row in summary
    ]
    title = (
        f"Fashion-MNIST after {setting.steps} steps of {setting.batch} images, "
        f"All-CNN-C of width {setting.width:g}, {max(row['seeds'] for row in summary)} seeds"
    )
    show(title, ["estimator", "p", "accuracy in %", "to exact, same seed", "seeds"], table)
    best = smallest_within(summary)
    for name, keep in best.items():
        where = f"down to p = 1/{round(1 / keep)}" if keep else "at no keep rate"
        print(f"{name}: within {WITHIN:g} points of exact {where}")
    result = {"setting": asdict(setting), "smallest_keep_within": best, "within_points": WITHIN, "means": summary}
    name = "training" if setting == Setting() else f"training-width-{setting.width:g}-steps-{setting.steps}"
    print(f"written to {save(name, rows, result)}")
    from .training_plot import draw

    for path in draw(summary, title, WITHIN, name):
        print(f"written to {path}")
    return result
