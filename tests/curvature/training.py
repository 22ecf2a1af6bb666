"""A network of several kinds of layers, and a training loop."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False),
        nn.GroupNorm(2, 6),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).to(dtype)


def batch(count=8, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 6, 6, generator=generator, dtype=dtype)
    return x, torch.arange(count) % 3


def loss_of(model, x, y, reduction="mean"):
    return cross_entropy(model(x), y, reduction=reduction)


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(model, optimizer, count, first=0):
    for step in range(first, first + count):
        optimizer.zero_grad()
        loss_of(model, *batch(seed=step)).backward()
        optimizer.step()
