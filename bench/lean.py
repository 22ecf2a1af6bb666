"""Memory of a whole training step: lean mode beside checkpoints, half precision and small batches.

Held: what the forward pass leaves for backward. Peak: of forward and backward pass. Both count bytes of PyTorch's
allocator, without parameters and their gradients. Error: of all gradients, ‖ĝ - g‖ / ‖g‖, of one draw. Time: of a step
over the exact step's. Bytes are exact; only times need a quiet machine.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import randbp
from experiments.models import VGG19, AllCNNC, ConvNeXt, MobileNetV2, ResNet18
from experiments.models.convnext import Block
from experiments.models.mobilenet_v2 import InvertedResidual
from experiments.models.resnet18 import BasicBlock
from randbp import Exact, Rounding, Spatial
from randbp.diagnostics import StepPeak

from .half import held_in_half
from .harness import interleave, save, show

MIB = 2**20


@dataclass(frozen=True)
class Network:
    """A network with the images it sees, the parts that a checkpoint takes as one and the limit of ``lean="exact"``."""

    build: Callable[[], nn.Module]
    batch: int
    size: int
    blocks: type[nn.Module] | int
    exact_at_most: float | None = None


NETWORKS = {
    "resnet-18": Network(ResNet18, 16, 224, BasicBlock, exact_at_most=0.75),
    "vgg-19": Network(VGG19, 16, 224, 5),
    "all-cnn-c": Network(lambda: AllCNNC(), 128, 32, 4),
    "mobilenet-v2": Network(lambda: MobileNetV2(100, small_images=True), 128, 32, InvertedResidual),
    "convnext-base": Network(lambda: ConvNeXt(scale=0.1), 8, 64, Block),
}
"""(The learned scales of ConvNeXt start at 1e-6, at which its blocks have hardly a gradient to measure.)"""


@dataclass(frozen=True)
class Setting:
    """One way to run a step.

    Attributes:
        randomize: Arguments of :func:`randbp.randomize`, if it is used.
        parts: Micro-batches per step.
        bf16: Whether activations are held in bfloat16.
        checkpoints: Whether each block is run again in the backward pass.
        held_at_most: Share of the exact step's bytes that the setting is held to.
        peak_at_most: The same of the peak.
        time_at_most: The same of the time.
        same_bits: Whether the gradient must be the exact one, bit for bit.
    """

    randomize: dict[str, Any] | None = None
    parts: int = 1
    bf16: bool = False
    checkpoints: bool = False
    held_at_most: float | None = None
    peak_at_most: float | None = None
    time_at_most: float | None = None
    same_bits: bool = False


EIGHTH = Spatial(keep=1 / 8)
SETTINGS = {
    "exact": Setting(),
    "hooks of lean mode alone": Setting(
        {"weight_vjp": Exact(), "lean": {"": False}}, time_at_most=1.08, same_bits=True
    ),
    "lean='exact'": Setting({"weight_vjp": Exact(), "lean": "exact"}, same_bits=True),
    "Spatial(1/8), lean": Setting({"weight_vjp": EIGHTH, "lean": True}, held_at_most=1 / 5, peak_at_most=1 / 3),
    "the same in 4 bits": Setting(
        {"weight_vjp": Rounding(4, EIGHTH), "lean": True}, held_at_most=1 / 8, peak_at_most=1 / 3
    ),
    "Rounding(4), lean": Setting({"weight_vjp": Rounding(4), "lean": True}),
    "checkpoint per block": Setting(checkpoints=True),
    "activations held in bf16": Setting(bf16=True),
    "4 micro-batches": Setting(parts=4),
}


class Run:
    """A network in one setting."""

    def __init__(self, network: Network, model: nn.Module, setting: Setting, batch: int) -> None:
        torch.manual_seed(0)
        # All settings share the parameters, and hence the gradients.
        self.setting, self.model = setting, deepcopy(model, {id(p): p for p in model.parameters()})
        self.x = torch.randn(batch, 3, network.size, network.size)
        self.labels = torch.randint(0, 100, (batch,))
        if setting.checkpoints:
            add_checkpoints(self.model, network.blocks)

    def on(self) -> AbstractContextManager[Any]:
        """Randomised for as long as the context lasts."""
        options = self.setting.randomize
        return nullcontext() if options is None else randbp.randomize(self.model, **options)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of a micro-batch."""
        with held_in_half([*self.model.parameters(), x]) if self.setting.bf16 else nullcontext():
            return F.cross_entropy(self.model(x), labels) / self.setting.parts

    def step(self, after_forward: Callable[[], None] = lambda: None) -> None:
        """Forward and backward passes, from no gradients."""
        self.model.zero_grad()
        torch.manual_seed(1)  # dropout
        parts = self.setting.parts
        for x, labels in zip(self.x.chunk(parts), self.labels.chunk(parts), strict=True):
            loss = self.loss(x, labels)
            after_forward()
            loss.backward()

    def measure(self) -> tuple[int, int, Tensor]:
        """Bytes held for backward, peak and all gradients, of one step."""
        self.loss(self.x[:2], self.labels[:2]).backward()  # what is cached for good counts for no step
        self.model.zero_grad()
        gc.collect()
        with StepPeak("cpu", self.model.parameters()) as peak:
            self.step(peak.mark)
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
        self.model.zero_grad()
        return peak.marks[0], peak.bytes, gradient


def add_checkpoints(model: nn.Module, blocks: type[nn.Module] | int) -> None:
    """Run each block, or each of a number of segments of ``model.features``, again in the backward pass."""
    if isinstance(blocks, int):
        features: nn.Sequential = model.features  # type: ignore[assignment]
        layers = list(features)
        segmented = nn.Sequential(*layers)
        features.forward = lambda x: checkpoint_sequential(segmented, blocks, x, use_reentrant=False)  # type: ignore
        return
    for module in model.modules():
        if isinstance(module, blocks):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def run(pattern: str, budget: float, quick: bool, settings: Sequence[str] = ("",)) -> dict[str, Any]:
    """Measure the chosen networks; times only where ``budget`` seconds per network are given.

    Args:
        pattern: Parts of networks' names, separated by commas; empty for all.
        budget: Seconds per network for the timed rounds, of which there are three at least.
        quick: Whether to take a quarter of the batch.
        settings: Parts of settings' names; exact is always there.
    """
    chosen = [name for name in NETWORKS if not pattern or any(part in name for part in pattern.split(","))]
    rows = []
    for name in chosen:
        rows += measure(name, NETWORKS[name], budget, quick, settings)
    columns = ["network, setting", "held", "of exact", "peak", "of exact", "error", "time"]
    show("lean", columns, [_cells(row) for row in rows])
    missed = [f"{row['network']} {row['setting']}: {what}" for row in rows for what in row["missed"]]
    for line in missed:
        print(f"missed: {line}")
    summary = {"missed": missed}
    suffix = "" if chosen == list(NETWORKS) else "-" + "-".join(chosen)
    print(f"written to {save('lean' + suffix, rows, summary)}")
    return summary


def measure(name: str, network: Network, budget: float, quick: bool, settings: Sequence[str]) -> list[dict[str, Any]]:
    """The chosen settings of one network."""
    batch = max(4, network.batch // 4) if quick else network.batch
    torch.manual_seed(0)
    model = network.build().train()
    chosen = [title for title in SETTINGS if title == "exact" or any(part in title for part in settings)]
    runs = {title: Run(network, model, SETTINGS[title], batch) for title in chosen}
    rows: list[dict[str, Any]] = []
    exact = torch.empty(0)
    for title, current in runs.items():
        with current.on():
            held, peak, gradient = current.measure()
        if not rows:
            exact = gradient
        row: dict[str, Any] = {"network": name, "setting": title, "held": held, "peak": peak}
        row["error"] = float((gradient - exact).norm() / exact.norm())
        first = rows[0] if rows else row
        row["held_ratio"], row["peak_ratio"] = row["held"] / first["held"], row["peak"] / first["peak"]
        row["missed"] = []
        if current.setting.same_bits and row["error"]:
            row["missed"].append(f"error {row['error']:.3g} > 0")
        rows.append(row)
        print(
            f"{name}, {title}: held {held / MIB:.1f} MiB, peak {peak / MIB:.1f} MiB, error {row['error']:.3g}",
            flush=True,
        )
    if budget:
        with ExitStack() as stack:
            for current in runs.values():
                stack.enter_context(current.on())
            timings = interleave({title: current.step for title, current in runs.items()}, budget)
        for row in rows:
            row["time_ratio"] = timings[row["setting"]].seconds / timings["exact"].seconds
            row["seconds"] = timings[row["setting"]].seconds
    for row in rows:
        setting = SETTINGS[row["setting"]]
        held_at_most = network.exact_at_most if row["setting"] == "lean='exact'" else setting.held_at_most
        limits = {"held": held_at_most, "peak": setting.peak_at_most, "time": setting.time_at_most}
        row["missed"] += [
            f"{what} {row[what + '_ratio']:.3f} > {limit:.3f}"
            for what, limit in limits.items()
            if limit is not None and row.get(what + "_ratio", 0) > limit
        ]
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['network']}  {row['setting']}",
        f"{row['held'] / MIB:.1f} MiB",
        f"{row['held_ratio']:.3f}",
        f"{row['peak'] / MIB:.1f} MiB",
        f"{row['peak_ratio']:.3f}",
        f"{row['error']:.3g}",
        f"{row['time_ratio']:.2f}" if "time_ratio" in row else "",
    ]
