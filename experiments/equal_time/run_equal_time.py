"""The command: times, trainings, then the page."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.checkpoints import add_checkpoints
from experiments.data.fashion_mnist import FashionMNIST
from experiments.short_training import (
    Row,
    accuracy,
    all_runs,
    batches_of,
    one_cycle_sgd,
    options_parser,
    prepared,
    trained,
)
from randbp.diagnostics import StepPeak
from randbp.diagnostics.timing import interleave, seconds_per_call

from .controlled import Rates, set_rates, train_controlled
from .page import write_page
from .settings import CONTROLLED, EXACT, HALF, NETWORKS, SETTINGS, Setting, Training, cut

QUICK = {"width": 0.25, "steps": 30, "batch": 32, "test_images": 500, "seeds": 2}
ROUNDS = (3, 9)
"""Least and most steps of each setting that are timed."""


def main(argv: Sequence[str]) -> int:
    """Time the steps, do the trainings that are missing, and write the page."""
    options = vars(_parser().parse_args(argv))
    if options.pop("quick"):
        options |= QUICK
    names, network, seeds, folder = (options.pop(name) for name in ("settings", "network", "seeds", "output"))
    chosen = {name: setting for name, setting in SETTINGS.items() if name in (*names, EXACT, HALF, "exact, batch 1/2")}
    folder.mkdir(parents=True, exist_ok=True)
    costs = _costs(folder / f"{network}.json", network, chosen, options)
    wanted = {name: setting for name, setting in chosen.items() if name in (*names, EXACT, HALF)}
    wanted = {EXACT: SETTINGS[EXACT]} | cut(chosen, {name: cost["seconds"] for name, cost in costs.items()}) | wanted
    rows = all_runs(wanted, seeds, folder / f"{network}.jsonl", {"network": network} | options, _run, _told)
    rows = [row for row in rows if row["setting"] in wanted]
    if CONTROLLED in wanted:
        controlled = next(row for row in rows if row["setting"] == CONTROLLED)
        costs = _costs(folder / f"{network}.json", network, chosen, options, controlled)
    for line in write_page(folder, network, options, rows, costs):
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    import experiments.equal_time as command

    parser = options_parser("equal-time", command.__doc__, steps=1000, batch=64, width=1.0, seeds=5, test_images=10_000)
    parser.set_defaults(output=Path("runs/equal_time"))
    parser.add_argument("--network", choices=NETWORKS, default="six-layers", help="what is trained (six-layers)")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="SETTING",
        help=f"of {'; '.join(SETTINGS)}",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK}, to see that it works")
    return parser


def _costs(
    path: Path, network: str, settings: Mapping[str, Setting], options: Mapping[str, Any], controlled: Row | None = None
) -> dict[str, dict[str, float]]:
    """Seconds and peak bytes of a step of each setting, measured in turn, unless they are written with these options.

    A step whose rates are controlled is measured once a training with its mean rates is known, and has its share of
    that training's measurements.
    """
    asked = {"width": options["width"], "batch": options["batch"], "threads": torch.get_num_threads()}
    known: dict[str, dict[str, float]] = {}
    if path.exists() and (found := json.loads(path.read_text()))["options"] == asked:
        known = found["costs"]
    missing = {
        name: setting for name, setting in settings.items()
        if name not in known and (setting.budget is None or controlled is not None)
    }  # fmt: skip
    if not missing:
        return known
    measured = _measured({EXACT: settings[EXACT]} | missing, network, options, (controlled or {}).get("rates", {}))
    scale = known[EXACT]["seconds"] / measured[EXACT]["seconds"] if EXACT in known else 1.0  # of another day
    for name, setting in missing.items():
        passes = 0.0 if setting.budget is None or controlled is None else controlled["passes"]
        seconds = measured[name]["seconds"] + passes * measured[EXACT]["seconds"]
        known[name] = measured[name] | {"seconds": scale * seconds}
        print(
            f"{name:28} {1e3 * known[name]['seconds']:.0f} ms, {known[name]['seconds'] / known[EXACT]['seconds']:.2f}"
        )
    path.write_text(json.dumps({"options": asked, "costs": known}, indent=1))
    return known


def _measured(
    settings: Mapping[str, Setting], network: str, options: Mapping[str, Any], rates: Rates
) -> dict[str, dict[str, float]]:
    images, labels = prepared(*(part[: options["batch"]] for part in _arrays()))
    contenders, peaks = {}, {}
    for name, setting in settings.items():
        torch.manual_seed(0)
        model = NETWORKS[network].build(options["width"])
        if setting.checkpoints:
            add_checkpoints(model, NETWORKS[network].block)
        training = Training(model, setting, NETWORKS[network].layers)
        if setting.budget is not None:
            set_rates(model, rates)
        size = max(1, round(setting.batch * options["batch"]))
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9)

        def step(training: Training = training, optimizer: torch.optim.Optimizer = optimizer, size: int = size) -> None:
            optimizer.zero_grad()
            training.gradients(images[:size], labels[:size])
            optimizer.step()

        step()
        with StepPeak(images.device) as peak:
            step()
        contenders[name], peaks[name] = step, peak.bytes
    timings = interleave(contenders, lambda run, times: seconds_per_call(run, times, images.device), ROUNDS, 600.0)
    return {
        name: {"seconds": sorted(readings)[len(readings) // 2], "bytes": peaks[name]}
        for name, readings in timings.items()
    }


def _arrays() -> tuple[Tensor, Tensor]:
    train = FashionMNIST().load()[0]
    return train.images, train.labels


def _told(row: Row) -> str:
    return f"accuracy {row['accuracy']:.4f}, loss {row['loss']:.3f}"


def _run(
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
    """One training by :func:`one_cycle_sgd`."""
    torch.manual_seed(seed)
    model = NETWORKS[network].build(width)
    if setting.checkpoints:
        add_checkpoints(model, NETWORKS[network].block)
    count, size = max(1, round(setting.steps * steps)), max(1, round(setting.batch * batch))
    (optimizer, schedule), layers = one_cycle_sgd(model), NETWORKS[network].layers
    if setting.budget is not None:
        batches = list(batches_of(len(train[1]), count, size, seed))
        row = train_controlled(
            model, setting.budget, setting.randomize or {}, layers, batches, train, optimizer,
            schedule(optimizer, total_steps=count), seed,
        )  # fmt: skip
    else:
        training = Training(model, setting, layers, seed)

        def gradients(images: Tensor, labels: Tensor) -> float:
            return training.gradients(images[:size], labels[:size])

        with training.around:
            row = trained(gradients, optimizer, seed, train, count, batch, schedule)
    found = accuracy(model, *(part[:test_images] for part in test), 100)
    return row | {"steps": count, "images": size, "accuracy": found}
