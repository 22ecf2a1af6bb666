"""Trainings of All-CNN-C on Fashion-MNIST: losses and accuracies on the way, by steps and by processor time."""

import time
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from experiments.models import AllCNNC
from experiments.short_training import Row, accuracy, gradients_of, trained

from .optimizers import Make

POINTS = 5  # accuracies that are measured in a training


def run(
    make: Make,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    width: float,
    steps: int,
    batch: int,
    test_images: int,
) -> Row:
    """One training; seconds are of all its processors, so that other programs do not count, nor do accuracies."""
    torch.manual_seed(seed)
    model = AllCNNC(10, in_channels=1, width=width, dropout=False)
    gradients, some = gradients_of(model), tuple(part[:test_images] for part in test)
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    measuring = 0.0
    start = time.process_time()

    def measure() -> None:
        nonlocal measuring
        begun = time.process_time()
        found = accuracy(model, some[0], some[1], 500)
        model.train()
        last = losses[-max(1, steps // POINTS) :]
        curve.append({"step": len(losses), "seconds": begun - start - measuring, "loss": mean(last), "accuracy": found})
        measuring += time.process_time() - begun

    def watched(images: Tensor, labels: Tensor) -> float:
        if losses and len(losses) % max(1, steps // POINTS) == 0:
            measure()
        losses.append(gradients(images, labels))
        return losses[-1]

    row = trained(watched, make(model), seed, train, steps, batch)
    measure()
    return row | {name: curve[-1][name] for name in ("accuracy", "seconds")} | {"curve": curve}
