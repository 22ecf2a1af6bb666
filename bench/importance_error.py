"""Errors of VJPs whose rows are drawn in the backward pass, beside ``Spatial``'s, before and after training.

All-CNN-C and ResNet-18 with the CIFAR stem, on Fashion-MNIST, 600 steps of 64 images; both a new network and the
trained one are recorded on a batch that training did not see. The error is ``‖ĝ - g‖/‖g‖`` over all convolutions
together, of the weight VJPs and of the input VJPs, the mean over draws; the input VJPs are those of single layers, of
exact output gradients.

Held to: ``Importance`` has, trained, at most 1/3 of ``Spatial``'s error of the weight VJP at p = 1/2 and 1/2 of it at
1/4; untrained, at most ``Spatial``'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.gradient_error.images import RealImages
from experiments.gradient_error.protocol import Layer, record
from experiments.models import AllCNNC, ResNet18
from randbp import Estimator, Exact, Importance, Spatial
from randbp.estimators import Draw

from .error import fashion_mnist
from .harness import matching, save, show

NETWORKS: dict[str, Callable[[float], nn.Module]] = {
    "all-cnn-c": lambda width: AllCNNC(width=width, dropout=False),
    "resnet-18": lambda width: ResNet18(10, stem="cifar", width=width),
}
ESTIMATORS: dict[str, Callable[[float], Estimator]] = {
    "Spatial": Spatial,
    "Importance": Importance,
    "Importance, 4 bits": lambda keep: Importance(keep, bits=4),
    "Importance, examples": lambda keep: Importance(keep, "examples"),
}
LIMITS = {("trained", 1 / 2): 1 / 3, ("trained", 1 / 4): 1 / 2, ("untrained", 1 / 2): 1.0, ("untrained", 1 / 4): 1.0}
RATES = {"all-cnn-c": 0.02, "resnet-18": 0.05}
"""Of learning."""


@dataclass(frozen=True)
class Setting:
    """How much is measured."""

    width: float = 0.25
    steps: int = 600
    batch: int = 64
    draws: int = 5


def errors(layers: Sequence[Layer], weights: dict[str, torch.Tensor], estimator: Estimator, draws: int) -> list[float]:
    """Of the weight VJPs and of the input VJPs, over all layers together."""
    squares, norms = [0.0, 0.0], [0.0, 0.0]
    for number, layer in enumerate(layers):
        exact = layer.weight_grad, Exact().input_vjp(layer.output_grad, weights[layer.name], layer.spec, Draw(0))
        for seed in range(draws):
            draw = Draw(seed).child(number)
            held = estimator.sketch(layer.input, layer.spec, draw)
            found = (
                estimator.weight_vjp(held, layer.output_grad, layer.spec, draw),
                estimator.input_vjp(layer.output_grad, weights[layer.name], layer.spec, draw),
            )
            for vjp, (ours, true) in enumerate(zip(found, exact, strict=True)):
                squares[vjp] += float((ours - true).square().sum())
                norms[vjp] += float(true.square().sum())
    return [sqrt(square / norm) for square, norm in zip(squares, norms, strict=True)]


def train(model: nn.Module, rate: float, setting: Setting, data: RealImages) -> list[float]:
    """Some steps of SGD with momentum; the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), rate, 0.9), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(setting.steps):
        images, labels = data.batch(setting.batch, generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run(pattern: str, setting: Setting, data: RealImages | None = None) -> list[dict[str, Any]]:
    """Measure the networks whose names start with the pattern's parts: a table and a JSON file."""
    data = data or fashion_mnist()
    rows: list[dict[str, Any]] = []
    for network in matching(pattern, NETWORKS):
        torch.manual_seed(1)
        model = NETWORKS[network](setting.width).train()
        for phase in ("untrained", "trained"):
            if phase == "trained":
                losses = train(model, RATES[network], setting, data)
                print(f"{network}: {setting.steps} steps, last losses {mean(losses[-20:]):.3f}", flush=True)
            layers = record(model, *data.batch(setting.batch, torch.Generator().manual_seed(9)))
            weights = {name: module.weight.detach() for name, module in _convolutions(model).items()}
            for keep in (1 / 2, 1 / 4):
                found = {name: errors(layers, weights, make(keep), setting.draws) for name, make in ESTIMATORS.items()}
                for name, (weight, input_) in found.items():
                    ratio, limit = weight / found["Spatial"][0], LIMITS[phase, keep]
                    row = {"network": network, "phase": phase, "keep": keep, "estimator": name, "weight_vjp": weight}
                    rows.append(row | {"input_vjp": input_, "ratio": ratio, "held_to": limit})
    table = [
        [
            *(row[name] for name in ("network", "phase")),
            f"{row['keep']:g}",
            row["estimator"],
            *(f"{row[name]:.3f}" for name in ("weight_vjp", "input_vjp", "ratio")),
            f"{row['held_to']:.2f}" if row["estimator"] == "Importance" else "",
        ]
        for row in rows
    ]
    columns = ["network", "phase", "p", "estimator", "weight VJPs", "input VJPs", "over Spatial", "held to"]
    show(f"relative errors, {setting.draws} draws, width {setting.width:g}", columns, table)
    print(f"written to {save('importance-error', rows, vars(setting))}")
    return rows


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
