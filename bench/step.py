"""Whole training steps, both VJPs of every convolution estimated at p = 1/4, over exact ones.

A step is forward, cross-entropy, backward and plain SGD, on random images: All-CNN-C on 32x32, VGG-19 (ImageNet head,
without dropout) and ResNet-18 on 224x224. The contenders take turns in one run. The weight VJP keeps positions
(``Spatial``) or examples (``Batch``); the input VJP keeps positions or output channels. "fastest" picks, for every
layer and VJP, the least time among these and the exact VJP, measured on the layer alone beforehand. The row "forward"
is the forward pass without a graph: no estimator touches it, so it bounds the ratio from below.

Held to: at most 0.70 for the best of the contenders.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from experiments.models import VGG19, AllCNNC, ResNet18
from randbp import Batch, Channels, Exact, Spatial, randomize
from randbp.estimators import Draw, Estimator
from randbp.functional import conv_spec
from randbp.tn import ConvSpec

from .harness import Timing, interleave, save, show

KEEP = 1 / 4
HELD_TO = 0.70
EXACT, FORWARD, FASTEST = "exact", "forward", "fastest of each layer"
# Network, image size, batch.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "all-cnn-c": (lambda: AllCNNC(dropout=False), 32, 64),
    "resnet-18": (ResNet18, 224, 8),
    "vgg-19": (lambda: VGG19(dropout=0.0), 224, 8),
}
SCHEMES: dict[str, tuple[Estimator, Estimator]] = {
    "Spatial, Spatial": (Spatial(KEEP), Spatial(KEEP)),
    "Spatial, Channels": (Spatial(KEEP), Channels(KEEP)),
    "Batch, Spatial": (Batch(KEEP), Spatial(KEEP)),
    "Batch, Channels": (Batch(KEEP), Channels(KEEP)),
}


def convolutions(model: nn.Module, images: torch.Tensor) -> dict[str, ConvSpec]:
    """The spec of every convolution, by name."""
    specs: dict[str, ConvSpec] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            specs[name] = conv_spec(
                arguments[0], module.weight, module.stride, module.padding, module.dilation, module.groups
            )

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return specs


def fastest(specs: dict[str, ConvSpec], budget: float) -> tuple[dict[str, Estimator], dict[str, Estimator]]:
    """Per layer the fastest estimator of the weight VJP and of the input VJP, exact ones included."""
    chosen: dict[ConvSpec, tuple[Estimator, Estimator]] = {}
    for spec in dict.fromkeys(specs.values()):
        x, v, w = torch.randn(spec.input_shape), torch.randn(spec.output_shape), torch.randn(spec.weight_shape)
        draw = Draw(0)

        def weight(e: Estimator, x: Any = x, v: Any = v, spec: Any = spec, draw: Draw = draw) -> Callable[[], Any]:
            return lambda: e.weight_vjp(e.sketch(x, spec, draw), v, spec, draw)

        def input_(e: Estimator, w: Any = w, v: Any = v, spec: Any = spec, draw: Draw = draw) -> Callable[[], Any]:
            return lambda: e.input_vjp(v, w, spec, draw)

        found = []
        for run, candidates in ((weight, (Spatial, Batch)), (input_, (Spatial, Channels))):
            estimators = {str(e): e for e in (Exact(), *(kind(KEEP) for kind in candidates))}
            times = interleave({name: run(e) for name, e in estimators.items()}, budget, (3, 9))
            found.append(estimators[min(times, key=lambda name: times[name].seconds)])
        chosen[spec] = (found[0], found[1])
    return {name: chosen[spec][0] for name, spec in specs.items()}, {n: chosen[s][1] for n, s in specs.items()}


def measure(
    network: str, budget: float, schemes: Sequence[str] = (*SCHEMES, FASTEST), rounds: tuple[int, int] = (3, 15)
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Timings of the exact step, the forward pass and the schemes, and what "fastest" picked."""
    make, size, batch = NETWORKS[network]
    torch.manual_seed(0)
    model = make().train()
    images = torch.randn(batch, 3, size, size)
    classes = 100 if network == "all-cnn-c" else 1000
    labels = torch.randint(classes, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def estimated(weight_vjp: Any, input_vjp: Any) -> Callable[[], None]:
        def run() -> None:
            with randomize(model, weight_vjp=weight_vjp, input_vjp=input_vjp):
                step()

        return run

    contenders: dict[str, Callable[[], None]] = {EXACT: step, FORWARD: forward}
    contenders |= {name: estimated(*SCHEMES[name]) for name in schemes if name != FASTEST}
    names: dict[str, str] = {}
    if FASTEST in schemes:
        picked = fastest(convolutions(model, images), budget / 40)
        names = {name: f"{picked[0][name]}, {picked[1][name]}" for name in picked[0]}
        contenders[FASTEST] = estimated(*picked)
    return interleave(contenders, budget, rounds), names


def run(pattern: str, budget: float) -> dict[str, Any]:
    """Time the networks whose names start with the pattern's parts: a table and a JSON file each."""
    prefixes = [part.strip() for part in pattern.split(",") if part.strip()]
    summary: dict[str, Any] = {}
    for network in NETWORKS:
        if prefixes and not any(network.startswith(prefix) for prefix in prefixes):
            continue
        summary[network] = report(network, *measure(network, budget))
    return summary


def report(network: str, timings: dict[str, Timing], picked: dict[str, str]) -> dict[str, Any]:
    """Print the table, write the JSON, return the summary."""
    exact = timings[EXACT].seconds
    rows: list[dict[str, Any]] = [
        {"contender": name, "seconds": t.seconds, "noise": t.noise, "rounds": t.rounds, "ratio": t.seconds / exact}
        for name, t in timings.items()
    ]
    best = min((row for row in rows if row["contender"] not in (EXACT, FORWARD)), key=lambda row: row["ratio"])
    table = [
        [row["contender"], f"{row['seconds']:.3f} s", f"{row['ratio']:.2f}", f"{row['noise']:.0%}"] for row in rows
    ]
    _, size, batch = NETWORKS[network]
    title = f"step of {network}, {batch} images of {size}x{size}, p = 1/4"
    show(title, ["weight VJP, input VJP", "median", f"over exact, held to {HELD_TO:.2f}", "noise"], table)
    summary = {"best": best["contender"], "ratio": best["ratio"], "held_to": HELD_TO, "fastest": picked}
    print(f"written to {save(f'step-{network}', rows, summary)}")
    return summary
