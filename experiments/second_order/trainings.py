"""Trainings of All-CNN-C on Fashion-MNIST: losses and accuracies on the way, by steps and by processor time."""

import torch
from torch import Tensor

from experiments.models import AllCNNC
from experiments.short_training import Row, gradients_of
from experiments.training_curve import trained_curve

from .optimizers import Make


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
    """One training with its curve."""
    torch.manual_seed(seed)
    model = AllCNNC(10, in_channels=1, width=width, dropout=False)
    some = (test[0][:test_images], test[1][:test_images])
    return trained_curve(model, gradients_of(model), make(model), seed, train, some, steps, batch)
