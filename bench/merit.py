"""Figure of merit: variance times time, and variance times bytes, of estimators and of their exact competitors.

All-CNN-C after 200 training steps on Fashion-MNIST, whole forward and backward passes. The variance of an estimated
gradient is that of the minibatch plus the estimator's,

    Var ĝ = E‖ĝ - g‖² + s²,   s² = E‖g - E g‖² over minibatches of the same size,

and the merit is ``Var ĝ / s²`` times time or bytes over those of the exact gradient: exact is 1, less is better. (A
run that averages gradients needs as many steps as the variance says, each at this cost.) The relative variance
``v = E‖ĝ - g‖²/‖g‖²`` and its products with time and bytes, which are zero for everything exact, are listed beside it.

Bytes are what the convolutions hold for their weight VJPs from forward to backward, over the bytes of their inputs. The
column "graph" is what the whole graph holds, over that of the exact one: in a network of convolutions and ReLUs each
ReLU holds its output, which is the next convolution's input, so that there a sketch comes on top. The competitors:

- activation checkpointing of three blocks (cut where the stride is 2): no variance, time measured (a second forward
  pass), bytes are the blocks' inputs; the peak, with the largest block computed again, is listed, too;
- micro-batches, ``m`` of them accumulated: no variance, ``1/m`` of the bytes, time measured;
- inputs held in bf16: half the bytes, error and time measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from experiments.gradient_error.images import RealImages
from experiments.gradient_error.protocol import Layer, layer_draw, record
from randbp import randomize
from randbp.diagnostics import held_for_backward
from randbp.diagnostics.minibatch_noise import squared_differences
from randbp.draws.draw import mix
from randbp.estimators import Axes, Batch, Channels, Draw, Estimator, Exact, Projection, Rounding, Spatial
from randbp.tn import LayerSpec
from randbp.tn.execute.layer_vjps import native_weight_vjp

from . import error
from .harness import interleave, save, show

RATES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
EXACT, CHECKPOINTING, MICRO, BF16 = "exact", "checkpointing", "micro-batches", "bf16 inputs"
MICRO_BATCHES = (2, 4, 8)


class Bfloat16(Estimator):
    """The input held in bf16: not random, an honest competitor."""

    serves = frozenset({"weight_vjp"})

    def sketch(self, input: Tensor, spec: LayerSpec, draw: Draw) -> tuple[Tensor, ...]:
        """The input, rounded."""
        return (input.bfloat16(),)

    def weight_vjp(self, held: tuple[Tensor, ...], output_grad: Tensor, spec: LayerSpec, draw: Draw) -> Tensor:
        """PyTorch's own, of the rounded input."""
        return native_weight_vjp(held[0].to(output_grad.dtype), output_grad, spec)


@dataclass(frozen=True)
class Contender:
    """One way to a gradient: a curve's name, where on the curve it lies, and the estimators of both VJPs."""

    curve: str
    parameter: float
    weight_vjp: Estimator
    input_vjp: Estimator = Exact()  # noqa: RUF009 -- a frozen value

    @property
    def name(self) -> str:
        return f"{self.curve} {self.parameter:g}"


def contenders(rates: tuple[float, ...]) -> list[Contender]:
    """All that is estimated; exact competitors are made in :func:`gradients`."""
    both = "Spatial, both VJPs"
    fast = "examples, and channels for the input VJP"
    kinds: dict[str, Callable[[float], Estimator]] = {
        "Spatial (default)": Spatial,
        "examples": Batch,
        "examples, centred": partial(Batch, center=True),
        "channels": Channels,
        "axes, Bernoulli": partial(Axes, bernoulli=True),
        "projection, Gaussian": partial(Projection, kind="gaussian"),
    }
    found = [Contender(curve, keep, kind(keep)) for curve, kind in kinds.items() for keep in rates]
    found += [Contender("Rounding to bits", bits, Rounding(bits)) for bits in (8, 4, 2, 1)]
    found += [Contender(both, keep, Spatial(keep), Spatial(keep)) for keep in rates]
    found += [Contender(fast, keep, Batch(keep), Channels(keep)) for keep in rates]
    return [*found, Contender(BF16, 16, Bfloat16(0.5))]


@dataclass(frozen=True)
class Setting:
    """How much is measured."""

    width: float = 1.0
    batch: int = 32
    draws: int = 3
    noise_batches: int = 8
    steps: int = error.STEPS
    rates: tuple[float, ...] = RATES


QUICK = Setting(width=0.25, batch=16, draws=2, noise_batches=4, rates=(1 / 2, 1 / 8))


class Problem:
    """A model and a batch, and what is computed from them."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.kernels = [p for p in model.parameters() if p.dim() == 4]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(images), labels)

    def gradient(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Gradients of all kernels."""
        return list(torch.autograd.grad(self.loss(images, labels), self.kernels))

    def estimated(self, contender: Contender, seed: int) -> list[Tensor]:
        """The same, estimated."""
        with randomize(self.model, weight_vjp=contender.weight_vjp, input_vjp=contender.input_vjp, seed=seed):
            return self.gradient(self.images, self.labels)

    def in_micro_batches(self, count: int) -> list[Tensor]:
        """The same, accumulated."""
        parts = zip(self.images.chunk(count), self.labels.chunk(count), strict=True)
        sums = None
        for part in parts:
            grads = self.gradient(*part)
            sums = grads if sums is None else [a.add_(b) for a, b in zip(sums, grads, strict=True)]
        assert sums is not None
        return [total.div_(count) for total in sums]

    def checkpointed_loss(self) -> Tensor:
        x = self.images
        for block in blocks(self.model):
            x = checkpoint(block, x, use_reentrant=False)
        return functional.cross_entropy(x.mean(dim=(2, 3)), self.labels)

    def checkpointed(self) -> list[Tensor]:
        """The same, with every block computed twice."""
        return list(torch.autograd.grad(self.checkpointed_loss(), self.kernels))

    def graph_bytes(self, loss: Callable[[], Tensor]) -> int:
        """Bytes that the graph of a loss holds for backward, parameters apart."""
        with held_for_backward(exclude=self.model.parameters()) as held:
            kept = loss()
            size = held.bytes
        del kept
        return size


def blocks(model: nn.Module) -> list[nn.Sequential]:
    """All-CNN-C cut behind each convolution of stride 2 and its ReLU."""
    found: list[list[nn.Module]] = [[]]
    strided = False
    for layer in model.get_submodule("features").children():
        found[-1].append(layer)
        if strided:
            found.append([])
        strided = isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
    return [nn.Sequential(*layers) for layers in found]


def checkpointed_bytes(layers: list[Layer], model: nn.Module) -> tuple[float, float]:
    """Blocks' inputs over all inputs: held between the passes, and at the peak, with one block computed again."""
    sizes = iter([layer.input.nbytes for layer in layers])
    inside = [[next(sizes) for layer in block if isinstance(layer, nn.Conv2d)] for block in blocks(model)]
    held, total = sum(block[0] for block in inside), sum(map(sum, inside))
    peaks = [sum(earlier[0] for earlier in inside[:number]) + sum(block) for number, block in enumerate(inside)]
    return held / total, max(peaks) / total


def variance(problem: Problem, layers: list[Layer], contender: Contender, draws: int) -> float:
    """``E‖ĝ - g‖²`` of all kernels: on the record of the exact pass where the weight VJP alone is estimated."""
    total = 0.0
    for number in range(draws):
        seed = mix(5, number, crc32(contender.name.encode()))
        if contender.input_vjp.exact:
            estimates = []
            for layer in layers:
                draw = layer_draw(seed, layer.name)
                held = contender.weight_vjp.sketch(layer.input, layer.spec, draw)
                estimates.append(contender.weight_vjp.weight_vjp(held, layer.output_grad, layer.spec, draw))
        else:
            estimates = problem.estimated(contender, seed)
        total += sum(_square(e - layer.weight_grad) for e, layer in zip(estimates, layers, strict=True))
    return total / draws


def held_share(layers: list[Layer], estimator: Estimator) -> float:
    """Bytes of the sketches over bytes of the inputs."""
    held = sum(
        tensor.untyped_storage().nbytes()
        for layer in layers
        for tensor in estimator.sketch(layer.input, layer.spec, layer_draw(0, layer.name))
    )
    return held / sum(layer.input.nbytes for layer in layers)


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def measure(setting: Setting, budget: float, data: RealImages | None = None) -> list[dict[str, Any]]:
    """One row for each contender and competitor."""
    data = data or error.fashion_mnist()
    model = error.trained_model(data, error.Setting(width=setting.width, steps=setting.steps), 0)
    generator = torch.Generator().manual_seed(6)
    problem = Problem(model, *data.batch(setting.batch, generator))
    layers = record(model, problem.images, problem.labels)
    parts = [data.batch(setting.batch, generator) for _ in range(setting.noise_batches)]
    noise = float(squared_differences(lambda part: problem.gradient(*part), parts).sum(1).mean()) / 2
    norm = sum(_square(layer.weight_grad) for layer in layers)
    exact_graph = problem.graph_bytes(lambda: problem.loss(problem.images, problem.labels))

    rows: list[dict[str, Any]] = [{"curve": EXACT, "parameter": 1, "variance": 0.0, "bytes": 1.0, "graph": 1.0}]
    held, peak = checkpointed_bytes(layers, model)
    graph = problem.graph_bytes(problem.checkpointed_loss) / exact_graph
    rows.append(
        {"curve": CHECKPOINTING, "parameter": 3, "variance": 0.0, "bytes": held, "peak_bytes": peak, "graph": graph}
    )
    run: dict[str, Callable[[], Any]] = {
        f"{EXACT} 1": lambda: problem.gradient(problem.images, problem.labels),
        f"{CHECKPOINTING} 3": problem.checkpointed,
    }
    for count in MICRO_BATCHES:
        rows.append({"curve": MICRO, "parameter": count, "variance": 0.0, "bytes": 1 / count, "graph": 1 / count})
        run[f"{MICRO} {count}"] = partial(problem.in_micro_batches, count)
    for contender in contenders(setting.rates):
        row = {"curve": contender.curve, "parameter": contender.parameter}
        row["variance"] = variance(problem, layers, contender, setting.draws) / norm
        row["bytes"] = held_share(layers, contender.weight_vjp)
        with randomize(model, weight_vjp=contender.weight_vjp, input_vjp=contender.input_vjp):
            row["graph"] = problem.graph_bytes(lambda: problem.loss(problem.images, problem.labels)) / exact_graph
        rows.append(row)
        run[contender.name] = partial(problem.estimated, contender, 0)
    timings = interleave(run, budget, (3, 9))
    exact = timings[f"{EXACT} 1"].seconds
    for row in rows:
        timing = timings[f"{row['curve']} {row['parameter']:g}"]
        row |= {"seconds": timing.seconds, "noise": timing.noise, "time": timing.seconds / exact}
        row["total_variance"] = 1 + row["variance"] * norm / noise
        for cost in ("time", "bytes"):
            row[f"variance_{cost}"] = row["variance"] * row[cost]
            row[f"merit_{cost}"] = row["total_variance"] * row[cost]
    return rows


def run(setting: Setting, budget: float, data: RealImages | None = None) -> dict[str, Any]:
    """Measure, print the table, write JSON and figure."""
    rows = measure(setting, budget, data)
    shown = ("variance", "time", "bytes", "graph", "variance_time", "variance_bytes", "total_variance")
    columns = [*shown, "merit_time", "merit_bytes"]
    table = [[f"{row['curve']}, {row['parameter']:g}", *(f"{row[key]:.3g}" for key in columns)] for row in rows]
    titles = ["", "v", "time", "bytes", "graph", "v·time", "v·bytes", "Var/s²", "merit, time", "merit, bytes"]
    show(f"figure of merit, All-CNN-C of width {setting.width:g}, batch {setting.batch}; exact is 1", titles, table)
    best = {cost: min(rows, key=lambda row: row[f"merit_{cost}"]) for cost in ("time", "bytes")}
    summary = {f"best_{cost}": f"{row['curve']} {row['parameter']:g}" for cost, row in best.items()}
    name = "merit" if setting.width == 1 else f"merit-width-{setting.width:g}"
    print(f"written to {save(name, rows, summary)}")
    from .merit_plot import draw

    for path in draw(rows, f"All-CNN-C after {setting.steps} steps on Fashion-MNIST, batch {setting.batch}", name):
        print(f"written to {path}")
    return summary
