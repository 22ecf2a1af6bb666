"""Trainings on Fashion-MNIST of a fixed number of steps, of which each is done once and written down."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from experiments.data.fashion_mnist import FashionMNIST
from randbp.diagnostics.significance import Interval, mean_interval, t_test

Row = dict[str, Any]


def prepared(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images of zero mean and unit variance over the data set."""
    return (images.float() / 255 - FashionMNIST.mean[0]) / FashionMNIST.std[0], labels


def trained(
    gradients: Callable[[Tensor, Tensor], float],
    optimizer: torch.optim.Optimizer,
    seed: int,
    train: tuple[Tensor, Tensor],
    steps: int,
    batch: int,
    make_schedule: Callable[..., LRScheduler] | None = None,
) -> Row:
    """Train on random batches: seconds, and the last 20 steps' mean loss.

    Args:
        gradients: Adds the gradients of images and labels to ``.grad`` and gives the loss.
        optimizer: Of the parameters.
        seed: Of the batches.
        train: Images and labels.
        steps: How many.
        batch: Images of each.
        make_schedule: From the optimiser and ``total_steps`` to a schedule of the learning rate; by default it falls
            linearly to zero.
    """
    make_schedule = make_schedule or _linear
    schedule = make_schedule(optimizer, total_steps=steps)
    start, losses = time.perf_counter(), []
    for index in batches_of(len(train[1]), steps, batch, seed):
        optimizer.zero_grad()
        losses.append(gradients(train[0][index], train[1][index]))
        optimizer.step()
        schedule.step()
    return {"seconds": time.perf_counter() - start, "loss": mean(losses[-20:])}


def batches_of(images: int, steps: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Numbers of the images of each step, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(images, (batch,), generator=generator)


def gradients_of(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> Callable[[Tensor, Tensor], float]:
    """What adds a model's gradients of a loss to ``.grad`` in one forward and backward pass."""

    def gradients(images: Tensor, labels: Tensor) -> float:
        loss = criterion(model(images), labels)
        loss.backward()
        return loss.item()

    return gradients


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[Interval, float, int] | None:
    """Mean of ``values - others`` over the seeds of both, with its 95 % interval; p-value of a t-test; their number.

    ``None`` for fewer than two seeds.
    """
    paired = torch.tensor([values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())])
    return (mean_interval(paired, 0.95), t_test(paired), len(paired)) if len(paired) > 1 else None


def one_cycle_sgd(model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[..., LRScheduler]]:
    """SGD with momentum, and the schedule in which its learning rate rises to 0.08 and falls to zero in one cycle."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return optimizer, partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.08)


def _linear(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total_steps)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> float:
    """Share of images whose label is found, in ``eval()`` mode."""
    model.eval()
    right = torch.cat([model(part).argmax(1) for part in images.split(batch)]) == labels
    return right.float().mean().item()


def options_parser(
    command: str,
    text: str | None,
    *,
    steps: int,
    batch: int,
    width: float = 0.25,
    seeds: int = 3,
    test_images: int = 5000,
) -> argparse.ArgumentParser:
    """The options that all such trainings take, with their defaults; the output's name is the command's."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments {command}", description=text)
    output = Path("runs") / f"{command.replace('-', '_')}.jsonl"
    parser.add_argument("--width", type=float, default=width, help=f"multiplies the channels (default: {width})")
    parser.add_argument("--steps", type=int, default=steps, help=f"of each run (default: {steps})")
    parser.add_argument("--batch", type=int, default=batch, help=f"images per step (default: {batch})")
    parser.add_argument("--test-images", type=int, default=test_images, help=f"of 10000 (default: {test_images})")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"runs per setting (default: {seeds})")
    parser.add_argument("--output", type=Path, default=output, help="one line per run")
    return parser


def all_runs(
    settings: Mapping[str, Any],
    seeds: int,
    output: Path,
    options: dict[str, Any],
    run: Callable[..., Row],
    told: Callable[[Row], str],
) -> list[Row]:
    """The rows of all runs with these options: those that are written already, and the others, which are done now.

    Args:
        settings: What differs, by name.
        seeds: Runs of each.
        output: One JSON object per line and run.
        options: Passed to ``run``; rows with others are left alone.
        run: From a setting, a seed, training and test images to a row.
        told: What is printed of a run that is done.
    """
    written = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    rows = [row for row in written if row["options"] == options and row["seed"] < seeds]
    done = {(row["setting"], row["seed"]) for row in rows}
    train, test = (prepared(images.images, images.labels) for images in FashionMNIST().load())
    for seed in range(seeds):
        for name, setting in settings.items():
            if (name, seed) in done:
                continue
            row = {"setting": name, "seed": seed, "options": options} | run(setting, seed, train, test, **options)
            rows.append(row)
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name:20} seed {seed}: {told(row)}", flush=True)
    return rows
