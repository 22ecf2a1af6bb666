"""Losses and accuracies on the way through a training, and figures of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from experiments.gradient_error.plot import STYLE
from experiments.short_training import Row, accuracy, trained
from randbp.diagnostics.significance import mean_interval

POINTS = 5  # accuracies that are measured in a training
COLOURS = ("#222222", "#999999", "#D55E00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#E69F00", "#8C564B")
Curve = Sequence[Mapping[str, float]]
"""Step, seconds, loss and accuracy of each point."""


def trained_curve(
    model: nn.Module,
    gradients: Callable[[Tensor, Tensor], float],
    optimizer: torch.optim.Optimizer,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    steps: int,
    batch: int,
    make_schedule: Callable[..., LRScheduler] | None = None,
) -> Row:
    """One training as :func:`experiments.short_training.trained` does it, with its curve.

    Seconds are of all its processors, so that other programs do not count, nor do accuracies.
    """
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    measuring = 0.0
    start = time.process_time()

    def measure() -> None:
        nonlocal measuring
        begun = time.process_time()
        found = accuracy(model, *test, 500)
        model.train()
        last = losses[-max(1, steps // POINTS) :]
        curve.append({"step": len(losses), "seconds": begun - start - measuring, "loss": mean(last), "accuracy": found})
        measuring += time.process_time() - begun

    def watched(images: Tensor, labels: Tensor) -> float:
        if losses and len(losses) % max(1, steps // POINTS) == 0:
            measure()
        losses.append(gradients(images, labels))
        return losses[-1]

    row = trained(watched, optimizer, seed, train, steps, batch, make_schedule)
    measure()
    return row | {name: curve[-1][name] for name in ("accuracy", "seconds")} | {"curve": curve}


def draw_curves(stem: Path, curves: Mapping[str, Sequence[Curve]]) -> None:
    """Draw loss and accuracy against steps and seconds: means over seeds, and with three seeds 95 % intervals.

    Args:
        stem: Of the files, PNG and SVG.
        curves: By name, one of each seed.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": stem.name}):
        figure = Figure(figsize=(8.2, 5.6), layout="constrained")
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for (name, found), colour in zip(curves.items(), COLOURS, strict=False):
            points = [list(same) for same in zip(*found, strict=True)]
            for line, what in zip(panels, ("loss", "accuracy"), strict=True):
                spans = [_interval([point[what] for point in same]) for same in points]
                for panel, along in zip(line, ("step", "seconds"), strict=True):
                    x = [mean(point[along] for point in same) for same in points]
                    label = name if what == "loss" and along == "step" else None
                    panel.plot(x, [span[0] for span in spans], color=colour, label=label)
                    if len(found) > 2:
                        low, high = ([span[end] for span in spans] for end in (1, 2))
                        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        for line, label in zip(panels, ("loss of the last steps", "test accuracy"), strict=True):
            line[0].set_ylabel(label)
        for panel, label in zip(panels[1], ("step", "processor seconds"), strict=True):
            panel.set_xlabel(label)
        figure.legend(loc="outside right upper", frameon=False)
        for suffix in ("png", "svg"):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(stem.with_suffix(f".{suffix}"), dpi=200, metadata=metadata)


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its interval."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    interval = mean_interval(torch.tensor(values, dtype=torch.float64), 0.95)
    return mean(values), interval.low, interval.high
