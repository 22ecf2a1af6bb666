"""What is compared: ways to train a network."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import randbp
from experiments.models import ResNet18
from experiments.models.resnet18 import BasicBlock
from experiments.models.small_vgg import Block, SmallVGG
from experiments.models.small_vit import EncoderBlock, SmallViT
from randbp import Importance, Precision, Projection, Spatial

HALF, CONTROLLED = "Importance(1/2), 4 bits", "Importance, 4 bits, VarianceControl(0.05)"
EXACT, FEWER_IMAGES, FEWER_STEPS = "exact", f"exact, batch cut to {HALF}", f"exact, steps cut to {HALF}"


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        randomize: Arguments of :func:`randbp.randomize`, if it is used.
        narrow: Whether the forward and backward pass run under autocast to bfloat16.
        checkpoints: Whether each block runs again in the backward pass.
        parts: Micro-batches per step.
        batch: Share of the images of a step.
        steps: Share of the steps.
        budget: Of ``VarianceControl``, which then chooses the keep rates.
    """

    randomize: Mapping[str, Any] | None = None
    narrow: bool = False
    checkpoints: bool = False
    parts: int = 1
    batch: float = 1.0
    steps: float = 1.0
    budget: float | None = None


def both(estimator: randbp.Estimator) -> Setting:
    """Both VJPs of the network's layers."""
    return Setting({"weight_vjp": estimator, "input_vjp": estimator})


SETTINGS: dict[str, Setting] = {
    EXACT: Setting(),
    "exact, batch 3/4": Setting(batch=3 / 4),
    "exact, batch 1/2": Setting(batch=1 / 2),
    "bf16 autocast": Setting(narrow=True),
    "checkpoint per block": Setting(checkpoints=True),
    "2 micro-batches": Setting(parts=2),
    "Precision": both(Precision()),
    "Spatial(1/2)": both(Spatial(1 / 2)),
    "Spatial(1/4), weight VJP": Setting({"weight_vjp": Spatial(1 / 4)}),
    "Projection(1/4), weight VJP": Setting({"weight_vjp": Projection(1 / 4)}),
    HALF: both(Importance(1 / 2, bits=4)),
    CONTROLLED: replace(both(Importance(1 / 2, bits=4)), budget=0.05),
    "Importance(1/4), 4 bits": both(Importance(1 / 4, bits=4)),
}
"""The settings whose steps are timed; exact training is then cut to the seconds of :data:`HALF`."""


@dataclass(frozen=True)
class Network:
    """A network, from the multiplier of its width.

    Attributes:
        build: Makes it.
        block: The parts that a checkpoint takes as one.
        layers: Which layers are estimated: all but those that see one vector of each example, whose rows are examples.
    """

    build: Callable[[float], nn.Module]
    block: type[nn.Module]
    layers: str | None = None


def _with_group_norm(model: nn.Module) -> nn.Module:
    """The same network with GroupNorm of up to eight groups in the place of BatchNorm."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                groups = max(g for g in range(1, 9) if child.num_features % g == 0)
                setattr(module, name, nn.GroupNorm(groups, child.num_features))
    return model


NETWORKS = {
    "six-layers": Network(lambda width: SmallVGG(10, in_channels=1, width=round(64 * width)), Block),
    "resnet": Network(lambda width: ResNet18(10, in_channels=1, stem="cifar", width=width / 2), BasicBlock),
    "resnet-group-norm": Network(
        lambda width: _with_group_norm(ResNet18(10, in_channels=1, stem="cifar", width=width / 2)), BasicBlock
    ),
    "transformer": Network(lambda width: SmallViT(width=round(8 * width) * 32, depth=2), EncoderBlock, "blocks.*"),
}


def cut(settings: Mapping[str, Setting], seconds: Mapping[str, float]) -> dict[str, Setting]:
    """Exact training with fewer images, and with fewer steps, in the seconds of :data:`HALF`; nothing if it saves none.

    The time of a step is read as a straight line through those of the whole and of half the batch.

    Example:
        >>> times = {EXACT: 1.0, "exact, batch 1/2": 0.6, HALF: 0.8}
        >>> [round(setting.batch * setting.steps, 3) for setting in cut({}, times).values()]
        [0.75, 0.8]
    """
    ratio = seconds[HALF] / seconds[EXACT]
    if ratio >= 1:
        return {}
    slope = 2 * (1 - seconds["exact, batch 1/2"] / seconds[EXACT])
    share = min(1.0, max(1 / 16, 1 - (1 - ratio) / slope))
    exact = settings.get(EXACT, Setting())
    return {FEWER_IMAGES: replace(exact, batch=share), FEWER_STEPS: replace(exact, steps=ratio)}


@dataclass
class Training:
    """A model with a setting, and what it takes to make its steps."""

    model: nn.Module
    setting: Setting
    layers: str | None = None
    seed: int = 0
    around: AbstractContextManager[Any] = field(init=False)

    def __post_init__(self) -> None:
        arguments = self.setting.randomize
        self.around = nullcontext()
        if arguments is not None:
            self.around = randbp.randomize(self.model, seed=self.seed, layers=self.layers, **arguments)

    def gradients(self, images: Tensor, labels: Tensor) -> float:
        """Add the gradients of a step to ``.grad``; the mean loss."""
        total, parts = 0.0, min(self.setting.parts, len(labels))
        for some, names in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.setting.narrow):
                loss = F.cross_entropy(self.model(some), names) * (len(names) / len(labels))
            loss.backward()
            total += loss.item()
        return total
