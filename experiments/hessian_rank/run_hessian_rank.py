"""The command: networks, their ranks, then the page."""

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.runs_once import Row, runs_once
from randbp.curvature import GGN, Hessian

from .bounds import LinearCNN, bounds, dense_bounds, shared_bounds
from .rank_page import write_page

WIDTHS = (1, 2, 3, 4, 6, 8, 11, 16)
DEEP = {2: (4, 7), 3: (4, 4, 4), 4: (4, 3, 3, 3)}
"""Kernel sizes by depth, each of which leaves one position of ten."""
MOST = 400
"""Parameters of generated networks."""
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
ACTIVATIONS = {"linear": nn.Identity, "ReLU": nn.ReLU, "tanh": nn.Tanh}


def main(argv: Sequence[str]) -> int:
    """Do what is missing, and write the page."""
    import experiments.hessian_rank as command

    parser = argparse.ArgumentParser(prog="python -m experiments hessian-rank", description=command.__doc__)
    parser.add_argument("--quick", action="store_true", help="small networks, 20 generated ones")
    parser.add_argument("--output", type=Path, default=Path("runs/hessian_rank"), help="a folder")
    options = parser.parse_args(argv)
    rows = runs_once(options.output / "ranks.jsonl", wanted(options.quick), measured, told)
    for line in write_page(options.output, rows):
        print(line)
    return 0


def wanted(quick: bool) -> Iterator[Row]:
    """All networks, as what a run is decided by."""
    widths = WIDTHS[:4] if quick else WIDTHS
    for width in widths:
        for depth, kernels in DEEP.items():
            for activation in ACTIVATIONS if depth == 3 else ["linear"]:
                channels = [1, *[width] * (depth - 1), 2]
                yield _run("width", [10], channels, [[k] for k in kernels], activation)
    for first in range(1, 11):
        yield _run("kernel", [10], [1, 6, 1], [[first], [11 - first]])
    for seed in range(20 if quick else 200):
        yield generated(seed)


def _run(
    series: str,
    size: list[int],
    channels: list[int],
    kernels: list[list[int]],
    activation: str = "linear",
    seed: int = 0,
) -> Row:
    net = {"size": size, "channels": channels, "kernels": kernels}
    return {"series": series, "net": net, "activation": activation, "seed": seed}


def generated(seed: int) -> Row:
    """Sizes of a network of 1 or 2 dimensions and 2 to 4 layers."""
    draw = random.Random(seed)
    while True:
        dims, depth = draw.choice((1, 1, 2)), draw.choice((2, 3, 4))
        size = [draw.randint(4, 9) if dims == 1 else draw.randint(3, 4) for _ in range(dims)]
        left, kernels = list(size), []
        for layer in range(depth):
            whole = layer == depth - 1 and draw.random() < 0.6
            kernels.append(list(left) if whole else [draw.randint(1, min(3, each)) for each in left])
            left = [each - k + 1 for each, k in zip(left, kernels[-1], strict=True)]
        channels = [draw.randint(1, 3), *(draw.randint(1, 9) for _ in range(depth - 1)), draw.randint(1, 3)]
        run = _run("generated", size, channels, kernels, seed=seed)
        if sizes(run).parameters <= MOST:
            return run


def sizes(run: Mapping[str, Any]) -> LinearCNN:
    """The network of a run."""
    net = run["net"]
    return LinearCNN(tuple(net["size"]), tuple(net["channels"]), tuple(map(tuple, net["kernels"])))


def network(run: Mapping[str, Any]) -> tuple[nn.Module, Tensor, Tensor]:
    """It, with random weights, and inputs of full rank and targets."""
    net, generator = sizes(run), torch.Generator().manual_seed(run["seed"])
    layers: list[nn.Module] = []
    for inner, outer, kernel in zip(net.channels, net.channels[1:], net.kernels, strict=False):
        layer = CONVOLUTIONS[len(kernel)](inner, outer, kernel, bias=False).double()
        nn.init.normal_(layer.weight, std=(inner * prod(kernel)) ** -0.5, generator=generator)
        layers += [layer, ACTIVATIONS[run["activation"]]()]
    model = nn.Sequential(*layers[:-1], nn.Flatten())
    inputs = net.channels[0] * net.positions(0)
    x = torch.randn(2 * inputs, net.channels[0], *net.size, generator=generator, dtype=torch.float64)
    return model, x, torch.randn(2 * inputs, net.outputs, generator=generator, dtype=torch.float64)


def measured(run: Mapping[str, Any]) -> Row:
    """Ranks, bounds, and how clear the ranks are: the smallest eigenvalue that counts over the next one."""
    model, x, y = network(run)
    whole, outer = (kind(model, (x, y), nn.MSELoss()).to_dense() for kind in (Hessian, GGN))
    tolerance = len(whole) * torch.finfo(whole.dtype).eps * float(torch.linalg.matrix_norm(whole, 2))
    ranks, gaps = {}, {}
    for name, matrix in {"H_o": outer, "H_f": whole - outer, "H": whole}.items():
        values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2).abs().sort(descending=True).values
        ranks[name] = int((values > tolerance).sum())
        around = values[ranks[name] - 1 : ranks[name] + 1]
        gaps[name] = float(around[0] / around[1]) if len(around) > 1 and float(around[1]) > 0 else None
    net = sizes(run)
    rank = net.channels[0] * net.positions(0)
    made = {"bounds": bounds(net, rank), "dense": dense_bounds(net, rank), "shared": shared_bounds(net)}
    return {"parameters": net.parameters, "ranks": ranks, "gaps": gaps, **made}


def told(row: Row) -> str:
    """One line of a network."""
    net = sizes(row["run"])
    found = ", ".join(f"{name} {rank} of at most {row['bounds'][name]}" for name, rank in row["ranks"].items())
    return f"{row['run']['activation']:6} {net.channels} {net.kernels}, {net.parameters} weights: {found}"
