"""Whole training steps, both VJPs of every convolution estimated at p = 1/4, over exact ones.

A step is forward, cross-entropy, backward and plain SGD, on random images: All-CNN-C on 32x32, VGG-19 (ImageNet head,
without dropout) and ResNet-18 on 224x224. The contenders take turns in one run. The weight VJP keeps positions
(``Spatial``) or examples (``Batch``); the input VJP keeps positions or output channels. "fastest" picks, for every
layer and VJP, the least time among these and the exact VJP, measured on the layer alone beforehand. The row "forward"
is the forward pass without a graph: no estimator touches it, so it bounds the ratio from below.

Held to: at most 0.70 for the best of the contenders.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.models import VGG19, AllCNNC, ResNet18
from randbp import Batch, Channels, Exact, Spatial, randomize
from randbp.estimators import Draw, Estimator
from randbp.functional import conv_spec
from randbp.tn import ConvSpec

from .harness import Timing, interleave, matching, over, save, show
from .place import Place

KEEP = 1 / 4
HELD_TO = 0.70
EXACT, FORWARD, FASTEST = "exact", "forward", "fastest of each layer"
Seconds = dict[str, dict[str, float]]  # by VJP and candidate
# Network, image size, batch.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "all-cnn-c": (lambda: AllCNNC(dropout=False), 32, 64),
    "resnet-18": (ResNet18, 224, 8),
    "vgg-19": (lambda: VGG19(dropout=0.0), 224, 8),
}
CANDIDATES: dict[str, dict[str, Estimator]] = {
    "weight_vjp": {"exact": Exact(), "Spatial": Spatial(KEEP), "Batch": Batch(KEEP)},
    "input_vjp": {"exact": Exact(), "Spatial": Spatial(KEEP), "Channels": Channels(KEEP)},
}
SCHEMES: dict[str, tuple[Estimator, Estimator]] = {
    "Spatial, Spatial": (Spatial(KEEP), Spatial(KEEP)),
    "Spatial, Channels": (Spatial(KEEP), Channels(KEEP)),
    "Batch, Spatial": (Batch(KEEP), Spatial(KEEP)),
    "Batch, Channels": (Batch(KEEP), Channels(KEEP)),
}


def convolutions(model: nn.Module, images: Tensor) -> dict[str, ConvSpec]:
    """The spec of every convolution, by name."""
    specs: dict[str, ConvSpec] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
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


def layer_seconds(specs: dict[str, ConvSpec], budget: float, place: Place) -> dict[str, Seconds]:
    """Seconds of every candidate for each VJP of each layer; layers of one shape are timed once."""
    times: dict[ConvSpec, Seconds] = {}
    for spec in dict.fromkeys(specs.values()):
        with place.tensors():
            x, v, w = torch.randn(spec.input_shape), torch.randn(spec.output_shape), torch.randn(spec.weight_shape)
        draw = Draw(0)

        def weight(e: Estimator, x: Tensor = x, v: Tensor = v, spec: ConvSpec = spec, draw: Draw = draw) -> Tensor:
            return e.weight_vjp(e.sketch(x, spec, draw), v, spec, draw)

        def input_(e: Estimator, w: Tensor = w, v: Tensor = v, spec: ConvSpec = spec, draw: Draw = draw) -> Tensor:
            return e.input_vjp(v, w, spec, draw)

        times[spec] = {}
        for (vjp, candidates), run in zip(CANDIDATES.items(), (weight, input_), strict=True):
            contenders = {name: partial(run, estimator) for name, estimator in candidates.items()}
            found = interleave(contenders, budget, (3, 9))
            times[spec][vjp] = {name: timing.seconds for name, timing in found.items()}
    return {name: times[spec] for name, spec in specs.items()}


def fastest(seconds: dict[str, Seconds], vjp: str) -> dict[str, str]:
    """The fastest candidate of each layer."""
    return {name: min(found[vjp], key=lambda candidate: found[vjp][candidate]) for name, found in seconds.items()}


def measure(
    network: str,
    budget: float,
    place: Place,
    schemes: Sequence[str] = (*SCHEMES, FASTEST),
    rounds: tuple[int, int] = (3, 15),
) -> tuple[dict[str, Timing], dict[str, Seconds]]:
    """Timings of the exact step, the forward pass and the schemes, and of the layers for "fastest"."""
    make, size, batch = NETWORKS[network]
    torch.manual_seed(0)
    classes = 100 if network == "all-cnn-c" else 1000
    with place.tensors():
        model = make().train()
        images = torch.randn(batch, 3, size, size)
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
    seconds: dict[str, Seconds] = {}
    if FASTEST in schemes:
        seconds = layer_seconds(convolutions(model, images), budget / 40, place)
        picks = [
            {name: candidates[pick] for name, pick in fastest(seconds, vjp).items()}
            for vjp, candidates in CANDIDATES.items()
        ]
        contenders[FASTEST] = estimated(*picks)
    return interleave(contenders, budget, rounds), seconds


def run(pattern: str, budget: float, place: Place) -> dict[str, Any]:
    """Time the networks whose names start with the pattern's parts: a table and a JSON file each."""
    summary: dict[str, Any] = {}
    for network in matching(pattern, NETWORKS):
        summary[network] = report(network, *measure(network, budget, place), place)
    return summary


def report(network: str, timings: dict[str, Timing], seconds: dict[str, Seconds], place: Place) -> dict[str, Any]:
    """Print the table, write the JSON, return the summary."""
    rows, table = over(timings, EXACT)
    best = min((row for row in rows if row["contender"] not in (EXACT, FORWARD)), key=lambda row: row["ratio"])
    _, size, batch = NETWORKS[network]
    title = f"step of {network}, {batch} images of {size}x{size}, p = 1/4"
    show(title, ["weight VJP, input VJP", "median", f"over exact, held to {HELD_TO:.2f}", "noise"], table)
    summary = {"best": best["contender"], "ratio": best["ratio"], "held_to": HELD_TO, "layers": seconds}
    if seconds:
        _show_layers(seconds)
    print(f"written to {save(f'step-{network}{place.suffix}', rows, summary)}")
    return summary


def _show_layers(seconds: dict[str, Seconds]) -> None:
    columns, table = ["layer"], []
    for vjp, candidates in CANDIDATES.items():
        columns += [vjp.replace("_vjp", " VJP"), *list(candidates)[1:]]
    for name, found in seconds.items():
        cells = [name]
        for times in found.values():
            exact, *others = times.values()
            cells += [f"{1e3 * exact:.1f} ms", *(f"{other / exact:.2f}" for other in others)]
        table.append(cells)
    show("single layers, over exact", columns, table)
