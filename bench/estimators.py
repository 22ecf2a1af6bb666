"""Estimated weight VJPs, drawing and storing included, over exact ones, for the layers of five networks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from randbp import Axes, Batch, IfFaster, Spatial
from randbp.estimators import Draw, Estimator
from randbp.tn.execute.layer_vjps import native_input_vjp, native_weight_vjp

from .harness import Timing, geometric_mean, interleave, save, show
from .layers import Layer, layers
from .place import Place

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
        "single positions": Spatial(keep, runs=False),
        "axes": Axes(keep),
        "batch": Batch(keep),
        "batch, centred": Batch(keep, center=True),
    }


def timed_vjps(
    layer: Layer, vjp: str, estimators: Mapping[str, Estimator], budget: float, place: Place
) -> dict[str, Timing]:
    """Times of a layer's exact ``"weight"`` or ``"input"`` VJP and of estimated ones, with all that they need.

    An estimate takes a new draw each time; of a weight VJP it has both halves.
    """
    spec = layer.spec
    with place.tensors():
        x, w, v = (torch.randn(shape) for shape in (spec.input_shape, spec.weight_shape, spec.output_shape))
    seeds = iter(range(10**9))

    def run(estimator: Estimator) -> torch.Tensor:
        draw = Draw(next(seeds))
        if vjp == "input":
            return estimator.input_vjp(v, w, spec, draw)
        return estimator.weight_vjp(estimator.sketch(x, spec, draw), v, spec, draw)

    exact = {"weight": lambda: native_weight_vjp(x, v, spec), "input": lambda: native_input_vjp(v, w, spec)}
    contenders = {name: partial(run, estimator) for name, estimator in estimators.items()}
    return interleave({"exact": exact[vjp], **contenders}, budget)


def measure(layer: Layer, budget: float, names: Sequence[str], place: Place) -> dict[str, Any]:
    """Seconds and noise of the exact weight VJP and of some estimators at each rate."""
    estimators = {f"{name} {keep:g}": candidates(keep)[name] for keep in RATES for name in names}
    timings = timed_vjps(layer, "weight", estimators, budget, place)
    row: dict[str, Any] = {"layer": layer.name, "network": layer.network}
    for name, timing in timings.items():
        row[name], row[f"{name} noise"] = timing.seconds, timing.noise
        if timing.device is not None:
            row[f"{name} device"] = timing.device
    return row


def run(pattern: str, budget: float, place: Place, settings: Sequence[str] = ("",)) -> dict[str, Any]:
    """Time layers: prints a table per rate, writes the JSON, returns the summary.

    Args:
        pattern: Networks or layers, separated by commas; empty for all.
        budget: Seconds per layer for the timed rounds.
        place: Where.
        settings: Parts of estimators' names.
    """
    torch.manual_seed(0)
    names = [name for name in candidates(1 / 2) if any(part in name for part in settings)]
    rows = []
    for layer in layers(pattern):
        row = measure(layer, budget, names, place)
        rows.append(row)
        cells = [f"{1e3 * row['exact']:.2f} ms", *_ratios(row, names, ""), f"noise {row['exact noise']:.0%}"]
        if "exact device" in row:
            cells += [f"on the device {1e3 * row['exact device']:.3f} ms", *_ratios(row, names, " device")]
        print(layer.name, *cells, flush=True)
    summary: dict[str, Any] = {}
    table = []
    shares = ["", " device"] if "exact device" in rows[0] else [""]
    for keep in RATES:
        for name in names:
            held_to = TARGETS[keep][0 if name == "spatial" else 1]
            cells = [f"{name}, p = {keep:g}", f"{held_to:.2f}"]
            for share in shares:
                ratios = [row[f"{name} {keep:g}{share}"] / row[f"exact{share}"] for row in rows]
                mean, worst = geometric_mean(ratios), max(ratios)
                summary[f"{name} {keep:g}{share}"] = {"geometric_mean": mean, "worst": worst}
                cells += [f"{mean:.2f}", f"{worst:.2f}"]
            table.append(cells)
    columns = ["geometric mean", "worst", "on the device", "worst"][: 2 * len(shares)]
    show("estimated over exact weight VJP", ["estimator", "held to", *columns], table)
    print(f"written to {save(f'estimators{place.suffix}', rows, summary)}")
    return summary


def _ratios(row: dict[str, Any], names: Sequence[str], share: str) -> list[str]:
    return [f"{row[f'{name} {keep:g}{share}'] / row[f'exact{share}']:.2f}" for keep in RATES for name in names]
