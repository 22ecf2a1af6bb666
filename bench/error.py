"""Error of estimated weight gradients at equal bytes, before and after training.

The protocol of the reference curve (:mod:`experiments.gradient_error`): All-CNN-C without dropout, cross-entropy,
Fashion-MNIST padded to 32x32 in three channels, batches of 128. The error is ``‖ĝ - g‖ / ‖g‖`` over all convolution
kernels together. What an estimator is charged is what it holds from forward to backward, in bytes, indices and scales
included, over the bytes of all layer inputs. Every draw has a batch of its own; untrained networks are drawn anew,
too, while the trained ones (200 steps of SGD) are few, because training them takes most of the time.

Held to: the default ``Spatial`` has at most 1/3 of the error of the Bernoulli axes and at most 1/2 of that of the
Gaussian projection at each keep rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any
from zlib import crc32

import torch
from torch import nn
from torch.nn import functional

from experiments.data import FashionMNIST
from experiments.gradient_error.images import RealImages
from experiments.gradient_error.protocol import Layer, layer_draw, record, untrained_model
from randbp.draws.draw import mix
from randbp.estimators import (
    Axes,
    Batch,
    BiasedTopK,
    Channels,
    Estimator,
    LowResolution,
    NormChannels,
    NormSpatial,
    Projection,
    Rounding,
    Spatial,
)

from .harness import RUNS, save, show
from .journal import Journal, Row

RATES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
CLASSES = 100
STEPS, LEARNING_RATE, MOMENTUM, TRAINING_BATCH, MODELS = 200, 0.01, 0.9, 32, 2
KEYS = ("phase", "draw", "estimator", "parameter", "width", "batch")


@dataclass(frozen=True)
class Series:
    """One curve: an estimator by its parameter, which is the keep rate or the number of bits."""

    label: str
    estimator: Callable[[Any], Estimator]
    parameters: tuple[float, ...] = RATES
    style: str = "ours"


def _rounded_spatial(bits: int, keep: float) -> Estimator:
    return Rounding(bits, Spatial(keep))


DEFAULT, AXES, GAUSSIAN = "Spatial (default)", "axes, Bernoulli", "projection, Gaussian"
SERIES = (
    Series("channels, Bernoulli", partial(Channels, bernoulli=True), style="reference"),
    Series(AXES, partial(Axes, bernoulli=True), style="reference"),
    Series(GAUSSIAN, partial(Projection, kind="gaussian"), style="reference"),
    Series("projection, Rademacher", Projection, style="other"),
    Series("channels", Channels, style="other"),
    Series("channels by norm", NormChannels, style="other"),
    Series("examples", Batch, style="other"),
    Series("examples, centred", partial(Batch, center=True)),
    Series("axes", Axes, style="other"),
    Series("positions by norm, top-k (biased)", partial(BiasedTopK, center=True), style="biased"),
    Series("Spatial, one set per batch", partial(Spatial, per_example=False, center=False)),
    Series("Spatial, no mean", partial(Spatial, center=False)),
    Series(DEFAULT, Spatial),
    Series("Spatial, single positions", partial(Spatial, runs=False), style="other"),
    Series("LowResolution", LowResolution),
    Series("NormSpatial", NormSpatial),
    Series("NormSpatial, 4x4 means", partial(NormSpatial, center=4)),
    Series("Rounding, 8 to 1 bits", Rounding, (8, 4, 2, 1)),
    Series("Spatial in 8 bits", partial(_rounded_spatial, 8), (1 / 2, 1 / 4, 1 / 8)),
    Series("Spatial in 4 bits", partial(_rounded_spatial, 4), (1 / 2, 1 / 4)),
)
# Held to: error of the default over that of each reference.
TARGETS = {AXES: 1 / 3, GAUSSIAN: 1 / 2}


@dataclass(frozen=True)
class Setting:
    """How much is measured."""

    width: float = 1.0
    batch: int = 128
    draws: int = 10
    models: int = MODELS
    steps: int = STEPS


QUICK = Setting(width=0.25, batch=32, draws=2, models=1)


def trained_model(data: RealImages, setting: Setting, number: int) -> nn.Module:
    """All-CNN-C after some steps of SGD on small batches; kept on disk."""
    model = untrained_model(setting.width, CLASSES, mix(1, number))
    path = RUNS / "error-models" / f"width-{setting.width:g}-steps-{setting.steps}-{number}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    generator = torch.Generator().manual_seed(mix(2, number) & 0xFFFFFFFF)
    for step in range(setting.steps):
        optimizer.zero_grad()
        images, labels = data.batch(TRAINING_BATCH, generator)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"model {number}, step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def measure(layers: list[Layer], estimator: Estimator, seed: int) -> tuple[float, float]:
    """Error of all kernel gradients together, and held over input bytes."""
    difference = norm = held_bytes = input_bytes = 0.0
    for layer in layers:
        draw = layer_draw(seed, layer.name)
        held = estimator.sketch(layer.input, layer.spec, draw)
        estimate = estimator.weight_vjp(held, layer.output_grad, layer.spec, draw)
        difference += float((estimate - layer.weight_grad).double().square().sum())
        norm += float(layer.weight_grad.double().square().sum())
        held_bytes += sum(tensor.untyped_storage().nbytes() for tensor in held)
        input_bytes += layer.input.nbytes
    return (difference / norm) ** 0.5, held_bytes / input_bytes


def measure_phase(phase: str, setting: Setting, data: RealImages, journal: Journal) -> None:
    """All draws of the untrained or of the trained networks; what the journal has is not measured again."""
    for number in range(setting.draws):
        wanted = []
        for series in SERIES:
            for parameter in series.parameters:
                row = {"phase": phase, "draw": number, "estimator": series.label, "parameter": parameter}
                row |= {"width": setting.width, "batch": setting.batch}
                if row not in journal:
                    wanted.append((series, parameter, row))
        if not wanted:
            continue
        if phase == "untrained":
            model = untrained_model(setting.width, CLASSES, mix(0, number))
        else:
            model = trained_model(data, setting, number % setting.models)
        generator = torch.Generator().manual_seed(mix(3, number, crc32(phase.encode())) & 0xFFFFFFFF)
        layers = record(model, *data.batch(setting.batch, generator))
        for series, parameter, row in wanted:
            seed = mix(4, number, crc32(f"{series.label} {parameter!r}".encode()))
            error, held = measure(layers, series.estimator(parameter), seed)
            journal.add({**row, "error": error, "held": held})
        print(f"{phase}: draw {number + 1} of {setting.draws}", flush=True)


def summarise(rows: list[Row]) -> list[Row]:
    """Mean and standard deviation of the error, and the mean bytes, by phase, estimator and parameter."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["phase"], row["estimator"], row["parameter"]), []).append(row)
    summary = []
    for (phase, estimator, parameter), found in groups.items():
        errors = [row["error"] for row in found]
        summary.append(
            {
                "phase": phase,
                "estimator": estimator,
                "parameter": parameter,
                "draws": len(found),
                "error": mean(errors),
                "std": stdev(errors) if len(errors) > 1 else 0.0,
                "held": mean(row["held"] for row in found),
            }
        )
    return summary


def ratios(summary: list[Row]) -> list[Row]:
    """The default's error over each reference's at the same keep rate, with the bytes of both."""
    by_key = {(row["phase"], row["estimator"], row["parameter"]): row for row in summary}
    found = []
    for phase in dict.fromkeys(row["phase"] for row in summary):
        for reference, held_to in TARGETS.items():
            for keep in RATES:
                ours, theirs = by_key.get((phase, DEFAULT, keep)), by_key.get((phase, reference, keep))
                if ours and theirs:
                    ratio = ours["error"] / theirs["error"]
                    row = {"phase": phase, "over": reference, "keep": keep, "ratio": ratio, "held_to": held_to}
                    found.append({**row, "held": ours["held"], "reference_held": theirs["held"]})
    return found


def report(rows: list[Row], name: str) -> dict[str, Any]:
    """Print the tables, write JSON and figure."""
    summary = summarise(rows)
    for phase in dict.fromkeys(row["phase"] for row in summary):
        table: dict[str, list[str]] = {}
        for row in sorted(summary, key=lambda row: -row["held"]):
            if row["phase"] == phase:
                table.setdefault(row["estimator"], []).append(
                    f"{row['error']:.3f} ± {row['std']:.3f} at {row['held']:.3f}"
                )
        order = [series.label for series in SERIES if series.label in table]
        lines = [[label, *table[label], *[""] * (len(RATES) - len(table[label]))] for label in order]
        draws = max(row["draws"] for row in summary if row["phase"] == phase)
        show(f"{phase}: relative error at held bytes / input bytes, {draws} draws", ["estimator", *[""] * 4], lines)
    against = ratios(summary)
    table_rows = [
        [
            row["phase"],
            row["over"],
            f"1/{round(1 / row['keep'])}",
            f"{row['ratio']:.3f}",
            f"{row['held_to']:.3f}",
            f"{row['held']:.4f}",
            f"{row['reference_held']:.4f}",
        ]
        for row in against
    ]
    columns = ["phase", "over", "p", "ratio", "held to", "bytes", "reference's bytes"]
    show("error of the default Spatial over the reference's", columns, table_rows)
    result = {"ratios": against, "means": summary}
    print(f"written to {save(name, rows, result)}")
    from .error_plot import draw

    for path in draw(summary, name):
        print(f"written to {path}")
    return result


def fashion_mnist() -> RealImages:
    """The images of the protocol."""
    return RealImages("Fashion-MNIST", FashionMNIST())


def run(setting: Setting, data: RealImages | None = None) -> dict[str, Any]:
    """Measure what is missing and report everything measured with this setting."""
    data = data or fashion_mnist()
    journal = Journal("error", KEYS)
    for phase in ("untrained", "trained"):
        measure_phase(phase, setting, data, journal)
    name = "error" if setting.width == 1 else f"error-width-{setting.width:g}"
    return report(journal.rows(width=setting.width, batch=setting.batch), name)
