"""A training of a fixed number of steps, and the runs of it that are written down already."""

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data.fashion_mnist import FashionMNIST

Row = dict[str, Any]


def prepared(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images of zero mean and unit variance over the data set."""
    return (images.float() / 255 - FashionMNIST.mean[0]) / FashionMNIST.std[0], labels


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seed: int,
    train: tuple[Tensor, Tensor],
    steps: int,
    batch: int,
) -> Row:
    """Train on random batches while the learning rate falls to zero: seconds, and the last 20 steps' mean loss."""
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    start, losses = time.perf_counter(), []
    for _ in range(steps):
        index = torch.randint(len(train[1]), (batch,), generator=generator)
        loss = F.cross_entropy(model(train[0][index]), train[1][index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return {"seconds": time.perf_counter() - start, "loss": mean(losses[-20:])}


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> float:
    """Share of images whose label is found, in ``eval()`` mode."""
    model.eval()
    right = torch.cat([model(part).argmax(1) for part in images.split(batch)]) == labels
    return right.float().mean().item()


def written(path: Path) -> list[Row]:
    """The rows of a file with one JSON object per line; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
