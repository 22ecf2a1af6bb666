"""The command: trainings and predictions, then the page."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data.digits import Digits
from experiments.runs_once import Row, runs_once
from randbp.curvature import ntk

from .learning_page import write_page

CLASSES = 10
FULL = {"widths": [8, 16, 32, 64, 128, 256], "seeds": 3, "images": 64, "test_images": 200, "steps": 1024}
QUICK = {"widths": [4, 16, 64], "seeds": 2, "images": 32, "test_images": 64, "steps": 64}
PACE = 1.0
"""The learning rate times the largest eigenvalue of ``Θ / N``."""

Data = tuple[Tensor, Tensor]


def main(argv: Sequence[str]) -> int:
    """Do the trainings that are missing, and write the page."""
    import experiments.ntk as command

    parser = argparse.ArgumentParser(prog="python -m experiments ntk", description=command.__doc__)
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK}")
    parser.add_argument("--output", type=Path, default=Path("runs/ntk"), help="a folder")
    options = parser.parse_args(argv)
    chosen: dict[str, Any] = QUICK if options.quick else FULL
    rest = {name: chosen[name] for name in ("images", "test_images", "steps")}
    wanted = [{"width": w, "seed": seed, **rest} for seed in range(chosen["seeds"]) for w in chosen["widths"]]
    rows = runs_once(options.output / "learning.jsonl", wanted, learned, told)
    for line in write_page(options.output, rows):
        print(line)
    return 0


def network(width: int, seed: int) -> nn.Module:
    """Three convolutions and a linear layer, for images of 8 x 8."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * width, CLASSES)),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear")
            nn.init.zeros_(layer.bias)
    return model


def data(images: int, test_images: int) -> tuple[Data, Data]:
    """Images of training and test with targets ``[N, 10]`` of zero sum."""
    found = []
    for samples, count in zip(Digits(size=8).load(), (images, test_images), strict=True):
        targets = F.one_hot(samples.labels[:count], CLASSES).float() - 1 / CLASSES
        found.append(((samples.images[:count] - Digits.mean[0]) / Digits.std[0], targets))
    return found[0], found[1]


class Linearised:
    """The predicted outputs at any step.

    Args:
        model: The network at the start.
        train: Images and targets of training.
        test: Images of the test.
    """

    def __init__(self, model: nn.Module, train: Data, test: Tensor) -> None:
        inputs, targets = train
        self.kernel = ntk(model, inputs)
        self._across = _matrix(ntk(model, test, inputs))
        self._values, self._vectors = torch.linalg.eigh(_matrix(self.kernel))
        self._count = len(inputs)
        self._targets = self._vectors.mT @ targets.double().flatten()
        self.rate = PACE * self._count / float(self._values[-1])

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Outputs ``[N, 10]`` on training and test images after a number of steps."""
        decay = 1 - (1 - self.rate * self._values.clamp_min(0) / self._count) ** step
        slope = torch.where(
            self._values > 1e-12 * self._values[-1], decay / self._values, step * self.rate / self._count
        )
        train = self._vectors @ (decay * self._targets)
        test = self._across @ (self._vectors @ (slope * self._targets))
        return train.view(-1, CLASSES), test.view(-1, CLASSES)


def _matrix(kernel: Tensor) -> Tensor:
    """``[N, M, C, C]`` as ``[N·C, M·C]`` in double precision."""
    return kernel.double().transpose(1, 2).flatten(2).flatten(0, 1)


def learned(run: Mapping[str, Any]) -> Row:
    """Train one network, and predict the same."""
    model = network(run["width"], run["seed"])
    train, test = data(run["images"], run["test_images"])
    start = time.perf_counter()
    linearised = Linearised(model, train, test[0])
    seconds = time.perf_counter() - start
    optimizer = torch.optim.SGD(model.parameters(), linearised.rate)
    steps = [0, *(2**power for power in range(run["steps"].bit_length()))]
    curves: dict[str, list[float]] = {}
    deviation = 0.0
    with torch.no_grad():
        origin = model(train[0]), model(test[0])
    for step in range(steps[-1] + 1):
        if step in steps:
            with torch.no_grad():
                real = (model(train[0]) - origin[0]).double(), (model(test[0]) - origin[1]).double()
            predicted = linearised.at(step)
            for kind, (ours, theirs) in {"real": real, "predicted": predicted}.items():
                for name, value in {
                    f"{kind} training loss": _loss(ours, train[1]),
                    f"{kind} test loss": _loss(theirs, test[1]),
                    f"{kind} test accuracy": float((theirs.argmax(1) == test[1].argmax(1)).double().mean()),
                }.items():
                    curves.setdefault(name, []).append(value)
            deviation = float((real[1] - predicted[1]).norm() / predicted[1].norm()) if step else 0.0
        optimizer.zero_grad()
        ((model(train[0]) - origin[0] - train[1]) ** 2).sum().div(2 * len(train[0])).backward()
        optimizer.step()
    later = ntk(model, train[0])
    drift = float((later - linearised.kernel).norm() / linearised.kernel.norm())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    told = {"parameters": parameters, "rate": linearised.rate, "seconds of kernels": seconds}
    return {**told, "steps": steps, "curves": curves, "deviation": deviation, "drift": drift}


def _loss(outputs: Tensor, targets: Tensor) -> float:
    return float(((outputs - targets) ** 2).sum() / (2 * len(targets)))


def told(row: Row) -> str:
    """One line of a network."""
    run, curves = row["run"], row["curves"]
    losses = ", ".join(f"{name} {values[-1]:.4f}" for name, values in curves.items() if "accuracy" not in name)
    ends = f"deviation {row['deviation']:.3f}, drift {row['drift']:.3f}"
    return f"width {run['width']}, seed {run['seed']}: {losses}, {ends}"
