"""Estimated weight VJPs, drawing and storing included, over exact ones, for the layers of five networks."""

from collections.abc import Sequence
from typing import Any

import torch

from randbp import Axes, Batch, IfFaster, Spatial
from randbp.estimators import Draw, Estimator
from randbp.estimators.native import native_weight_vjp

from .harness import geometric_mean, interleave, save, show
from .layers import Layer, layers

RATES = (1 / 2, 1 / 4, 1 / 8)
# Held to: time of the default Spatial, and of the fastest spatial or batch estimator, over the exact time.
TARGETS = {1 / 2: (0.75, 0.65), 1 / 4: (0.45, 0.40), 1 / 8: (0.30, 0.25)}


def candidates(keep: float) -> dict[str, Estimator]:
    """The estimators that are timed."""
    return {
        "spatial": Spatial(keep),
        "spatial, if faster": IfFaster(Spatial(keep)),
        "spatial, no mean": Spatial(keep, center=False),
        "shared positions": Spatial(keep, per_example=False),
        "axes": Axes(keep),
        "batch": Batch(keep),
        "batch, centred": Batch(keep, center=True),
    }


def measure(layer: Layer, budget: float, names: Sequence[str]) -> dict[str, Any]:
    """Seconds and noise of the exact weight VJP and of some estimators at each rate."""
    spec = layer.spec
    x, v = torch.randn(spec.input_shape), torch.randn(spec.output_shape)
    seeds = iter(range(10**9))

    def run(estimator: Estimator) -> torch.Tensor:
        draw = Draw(next(seeds))
        return estimator.weight_vjp(estimator.sketch(x, spec, draw), v, spec, draw)

    contenders: dict[str, Any] = {"exact": lambda: native_weight_vjp(x, v, spec)}
    for keep in RATES:
        for name in names:
            estimator = candidates(keep)[name]
            contenders[f"{name} {keep:g}"] = lambda estimator=estimator: run(estimator)
    timings = interleave(contenders, budget)
    row: dict[str, Any] = {"layer": layer.name, "network": layer.network}
    for name, timing in timings.items():
        row[name], row[f"{name} noise"] = timing.seconds, timing.noise
    return row


def run(pattern: str, budget: float, settings: Sequence[str] = ("",)) -> dict[str, Any]:
    """Time layers: prints a table per rate, writes the JSON, returns the summary.

    Args:
        pattern: Networks or layers, separated by commas; empty for all.
        budget: Seconds per layer for the timed rounds.
        settings: Parts of estimators' names.
    """
    torch.manual_seed(0)
    names = [name for name in candidates(1 / 2) if any(part in name for part in settings)]
    rows = []
    for layer in layers(pattern):
        rows.append(measure(layer, budget, names))
        ratios = [f"{rows[-1][f'{name} {keep:g}'] / rows[-1]['exact']:.2f}" for keep in RATES for name in names]
        print(
            layer.name, f"{1e3 * rows[-1]['exact']:.2f} ms", *ratios, f"noise {rows[-1]['exact noise']:.0%}", flush=True
        )
    summary: dict[str, Any] = {}
    table = []
    for keep in RATES:
        for name in names:
            ratios = [row[f"{name} {keep:g}"] / row["exact"] for row in rows]
            mean, worst = geometric_mean(ratios), max(ratios)
            summary[f"{name} {keep:g}"] = {"geometric_mean": mean, "worst": worst}
            held_to = TARGETS[keep][0 if name == "spatial" else 1]
            table.append([f"{name}, p = {keep:g}", f"{mean:.2f}", f"{held_to:.2f}", f"{worst:.2f}"])
    show("estimated over exact weight VJP", ["estimator", "geometric mean", "held to", "worst"], table)
    print(f"written to {save('estimators', rows, summary)}")
    return summary
