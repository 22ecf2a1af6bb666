"""How far each way's gradient is from the exact one, and how far minibatches' gradients are from one another."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional

import randbp
from experiments.checkpoints import add_checkpoints
from experiments.data.loader import Batch, Loader
from experiments.models.small_vgg import Block

from .compared import Way

NOISE_BATCHES = 8


def gradient(network: nn.Module, batch: Batch, way: Way, seed: int) -> Tensor:
    """All gradients of one batch, one after the other in one vector; the network stays as it is."""
    model = deepcopy(network).train()
    if way.checkpoints:
        add_checkpoints(model, Block)
    handle = None if way.dropout is None else randbp.randomize(model, **way.dropout, seed=seed)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(images), labels) / way.parts

    for images, labels in zip(*(part.chunk(way.parts) for part in batch), strict=True):
        (loss if handle is None else handle.lean()(loss))(images, labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def gradient_errors(network: nn.Module, batch: Batch, ways: Sequence[Way], seed: int) -> dict[str, float]:
    """``‖ĝ - g‖ / ‖g‖`` of each way; the first one is exact."""
    exact = gradient(network, batch, ways[0], seed)
    scale = exact.norm()
    return {way.name: float((gradient(network, batch, way, seed) - exact).norm() / scale) for way in ways}


def minibatch_noise(network: nn.Module, loader: Loader, exact: Way) -> float:
    """``√E‖g - E g‖² / √E‖g‖²`` over minibatches of one epoch, which have no image in common."""
    found = torch.stack([gradient(network, batch, exact, 0) for batch in islice(loader, NOISE_BATCHES)])
    return float((found.var(dim=0).sum() / found.square().sum(dim=1).mean()).sqrt())
