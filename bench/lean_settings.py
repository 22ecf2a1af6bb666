"""What ``python -m bench lean`` runs: networks, ways to train them, and the limits that randbp's own are held to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from experiments import checkpoints
from experiments.models import VGG19, AllCNNC, ConvNeXt, MobileNetV2, ResNet18
from experiments.models.convnext import Block
from experiments.models.mobilenet_v2 import InvertedResidual
from experiments.models.resnet18 import BasicBlock
from randbp import Exact, Rounding, Spatial


@dataclass(frozen=True)
class Network:
    """A network with the images it sees, and the parts that a checkpoint takes as one."""

    build: Callable[[], nn.Module]
    batch: int
    size: int
    blocks: type[nn.Module] | int


NETWORKS = {
    "resnet-18": Network(ResNet18, 16, 224, BasicBlock),
    "vgg-19": Network(VGG19, 16, 224, 5),
    "all-cnn-c": Network(lambda: AllCNNC(), 128, 32, 4),
    "mobilenet-v2": Network(lambda: MobileNetV2(100, small_images=True), 128, 32, InvertedResidual),
    "convnext-base": Network(lambda: ConvNeXt(scale=0.1), 8, 64, Block),
}
"""(The learned scales of ConvNeXt start at 1e-6, at which its blocks have hardly a gradient to measure.)"""


@dataclass(frozen=True)
class Limits:
    """What a setting is held to.

    Attributes:
        held: Share of the exact step's bytes; by network, or for all of them.
        peak: The same of the peak.
        time: The same of the time.
        error: Of the gradient.
        of_noise: The error over the noise of the minibatch.
        same_bits: Whether the gradient must be the exact one, bit for bit.
    """

    held: float | dict[str, float] | None = None
    peak: float | dict[str, float] | None = None
    time: float | dict[str, float] | None = None
    error: float | dict[str, float] | None = None
    of_noise: float | dict[str, float] | None = None
    same_bits: bool = False

    def of(self, what: str, network: str) -> float | None:
        """A limit for a network, if there is one.

        Example:
            >>> Limits(held=0.5, time={"resnet-18": 1.1}).of("time", "vgg-19") is None
            True
        """
        limit: float | dict[str, float] | None = getattr(self, what)
        return limit.get(network) if isinstance(limit, dict) else limit


@dataclass(frozen=True)
class Setting:
    """One way to run a step.

    Attributes:
        randomize: Arguments of :func:`randbp.randomize`, if it is used.
        parts: Micro-batches per step.
        elsewhere: Whether activations are held in bfloat16, or in the host's memory.
        checkpoints: Whether each block is run again in the backward pass.
        compiled: Whether the model is compiled, and which share of its activations that may then hold.
        limits: What it is held to.
    """

    randomize: dict[str, Any] | None = None
    parts: int = 1
    elsewhere: Literal["bf16", "host"] | None = None
    checkpoints: bool = False
    compiled: float | None = None
    limits: Limits = field(default_factory=Limits)


SLOW = {"mobilenet-v2": 1.20, "convnext-base": 1.20}
AS_EXACT = {"resnet-18": 1.10, "vgg-19": 0.90, "all-cnn-c": 0.90, **SLOW}
FAST = {"resnet-18": 0.95, "vgg-19": 0.80, "all-cnn-c": 0.80, "mobilenet-v2": 1.02, "convnext-base": 1.02}
HELD_EXACT = {"resnet-18": 0.66, "vgg-19": 0.56}
EIGHTH = Spatial(keep=1 / 8)
SETTINGS = {
    "exact": Setting(),
    "preset exact": Setting({"preset": "exact"}, limits=Limits(held=HELD_EXACT, time=1.03, same_bits=True)),
    "preset memory": Setting(
        {"preset": "memory"}, limits=Limits(held=0.14, peak=1 / 3, time=AS_EXACT, error=0.15, of_noise=1 / 5)
    ),
    "preset memory, 2 bits": Setting(
        {"preset": "memory", "bits": 2}, limits=Limits(held=1 / 12, peak=1 / 3, time=AS_EXACT)
    ),
    "preset time": Setting({"preset": "time"}, limits=Limits(time=FAST, error=0.02)),
    "checkpoint per block": Setting(checkpoints=True),
    "held in bf16": Setting(elsewhere="bf16"),
    "4 micro-batches": Setting(parts=4),
    "Spatial(1/8), lean": Setting({"weight_vjp": EIGHTH, "lean": True}, limits=Limits(held=1 / 5, peak=1 / 3)),
    "the same in 4 bits": Setting(
        {"weight_vjp": Rounding(4, EIGHTH), "lean": True}, limits=Limits(held=1 / 8, peak=1 / 3)
    ),
    "compiled": Setting(compiled=1.0),
    "compiled, half of the activations": Setting(compiled=0.5),
    "compiled, preset memory": Setting({"preset": "memory"}, compiled=1.0),
    "hooks of lean mode alone": Setting(
        {"weight_vjp": Exact(), "lean": {"": False}}, limits=Limits(time=1.08, same_bits=True)
    ),
}


def add_checkpoints(model: nn.Module, blocks: type[nn.Module] | int) -> None:
    """Run each block, or each of a number of segments of ``model.features``, again in the backward pass."""
    if isinstance(blocks, int):
        features: nn.Sequential = model.features  # type: ignore[assignment]
        layers = list(features)
        segmented = nn.Sequential(*layers)
        features.forward = lambda x: checkpoint_sequential(segmented, blocks, x, use_reentrant=False)  # type: ignore
        return
    checkpoints.add_checkpoints(model, blocks)
