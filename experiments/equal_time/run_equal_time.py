"""The command: times, trainings, then the page."""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.checkpoints import add_checkpoints
from experiments.data.fashion_mnist import FashionMNIST
from experiments.short_training import Row, accuracy, all_runs, options_parser, prepared, trained
from randbp.diagnostics import StepPeak
from randbp.diagnostics.timing import interleave, seconds_per_call

from .page import write_page
from .settings import EXACT, HALF, NETWORKS, SETTINGS, Setting, Training, cut

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
    wanted |= cut(chosen, {name: cost["seconds"] for name, cost in costs.items()})
    rows = all_runs(wanted, seeds, folder / f"{network}.jsonl", {"network": network} | options, _run, _told)
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
    path: Path, network: str, settings: Mapping[str, Setting], options: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Seconds and peak bytes of a step of each setting, measured in turn; those that are written with these options."""
    asked = {"width": options["width"], "batch": options["batch"], "threads": torch.get_num_threads()}
    if path.exists():
        found = json.loads(path.read_text())
        if found["options"] == asked and found["costs"].keys() >= settings.keys():
            costs: dict[str, dict[str, float]] = found["costs"]
            return costs
    images, labels = prepared(*(part[: options["batch"]] for part in _arrays()))
    contenders, peaks = {}, {}
    for name, setting in settings.items():
        torch.manual_seed(0)
        model = NETWORKS[network].build(options["width"])
        if setting.checkpoints:
            add_checkpoints(model, NETWORKS[network].block)
        training, size = (
            Training(model, setting, NETWORKS[network].layers),
            max(1, round(setting.batch * options["batch"])),
        )
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
    costs = {
        name: {"seconds": sorted(readings)[len(readings) // 2], "bytes": peaks[name]}
        for name, readings in timings.items()
    }
    path.write_text(json.dumps({"options": asked, "costs": costs}, indent=1))
    for name, cost in costs.items():
        print(f"{name:28} {1e3 * cost['seconds']:.0f} ms, {cost['seconds'] / costs[EXACT]['seconds']:.2f} of exact")
    return costs


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
    """One training: SGD with momentum, the learning rate rising to 0.08 and falling to zero in one cycle."""
    torch.manual_seed(seed)
    model = NETWORKS[network].build(width)
    if setting.checkpoints:
        add_checkpoints(model, NETWORKS[network].block)
    count, size = max(1, round(setting.steps * steps)), max(1, round(setting.batch * batch))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    training = Training(model, setting, NETWORKS[network].layers, seed)

    def gradients(images: Tensor, labels: Tensor) -> float:
        return training.gradients(images[:size], labels[:size])

    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.08)
    with training.around:
        row = trained(gradients, optimizer, seed, train, count, batch, schedule)
    found = accuracy(model, *(part[:test_images] for part in test), 100)
    return row | {"steps": count, "images": size, "accuracy": found}
