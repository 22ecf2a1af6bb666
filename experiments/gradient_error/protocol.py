"""What is measured: one exact forward and backward pass, then any number of estimates of its weight VJPs.

With the weight VJPs alone estimated, all activations and output gradients are exact. So they are recorded once per
model and batch, and each estimator runs on the record; the test compares with ``randbp.randomize`` and ``backward``.
"""

from dataclasses import dataclass
from functools import partial
from math import sqrt
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.models import AllCNNC
from randbp.cli.errors import RunError
from randbp.draws.draw import mix
from randbp.estimators import Draw, Estimator
from randbp.functional import conv_spec
from randbp.tn import ConvSpec


@dataclass(frozen=True)
class Layer:
    """One convolution of a recorded pass: input ``[N, C, *I]``, output gradient ``[N, D, *O]``, exact weight VJP."""

    name: str
    spec: ConvSpec
    input: Tensor
    output_grad: Tensor
    weight_grad: Tensor


@dataclass(frozen=True)
class Measurement:
    """Relative error ``‖g - ĝ‖ / ‖g‖``, and the share of the layer inputs' entries that was held for it."""

    error: float
    held: float


def untrained_model(width: float, num_classes: int, seed: int) -> nn.Module:
    """All-CNN-C without dropout, initialised from a seed; PyTorch's global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed & 0xFFFFFFFF)
        return AllCNNC(num_classes=num_classes, width=width, dropout=False)


def record(model: nn.Module, images: Tensor, labels: Tensor) -> list[Layer]:
    """All convolutions of one exact forward and backward pass of the cross-entropy."""
    inputs: dict[str, Tensor] = {}
    output_grads: dict[str, Tensor] = {}

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        inputs[name] = arguments[0].detach()
        output.register_hook(partial(output_grads.__setitem__, name))

    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    handles = [m.register_forward_hook(partial(hook, name=name)) for name, m in convolutions.items()]
    try:
        loss = functional.cross_entropy(model(images), labels)
        weight_grads = torch.autograd.grad(loss, [m.weight for m in convolutions.values()])
    finally:
        for handle in handles:
            handle.remove()
    return [
        Layer(
            name,
            conv_spec(inputs[name], m.weight, m.stride, m.padding, m.dilation, m.groups),
            inputs[name],
            output_grads[name],
            weight_grad,
        )
        for (name, m), weight_grad in zip(convolutions.items(), weight_grads, strict=True)
    ]


def layer_draw(seed: int, name: str) -> Draw:
    """The sample that ``randbp.randomize(model, seed=seed)`` uses for the weight VJP of a layer's first pass."""
    step = micro_batch = rank = 0
    return Draw(mix(seed, crc32(name.encode()), step, micro_batch, rank, 1)).child(0)


def estimate(layer: Layer, estimator: Estimator, seed: int) -> tuple[Tensor, int]:
    """Estimated weight VJP of a layer, and how many numbers were held for it."""
    draw = layer_draw(seed, layer.name)
    held = estimator.sketch(layer.input, layer.spec, draw)
    return estimator.weight_vjp(held, layer.output_grad, layer.spec, draw), sum(tensor.numel() for tensor in held)


def measure(layers: list[Layer], estimator: Estimator, seed: int) -> Measurement:
    """Error of all estimated kernel gradients, flattened and concatenated.

    Raises:
        RunError: If the exact gradient is zero.
    """
    difference = norm = 0.0
    held = 0
    for layer in layers:
        weight_grad, size = estimate(layer, estimator, seed)
        difference += _square(weight_grad - layer.weight_grad)
        norm += _square(layer.weight_grad)
        held += size
    if not norm:
        raise RunError("the exact gradient is zero, so no error relates to it; a larger --width makes this unlikely")
    return Measurement(sqrt(difference / norm), held / sum(layer.input.numel() for layer in layers))


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
