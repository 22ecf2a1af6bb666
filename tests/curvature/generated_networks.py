"""Small networks of every kind of layer, with hyper-parameters drawn from a seed, in double precision."""

import random

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def generated(seed: int, examples: int = 3, classes: int = 3) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode and its input ``[N, C, *I]``; the output is ``[N, classes]``.

    Every third network is 1-, 2-, 3-dimensional; each has a convolution, a transposed one, a linear layer over tokens
    and another one, norms of all kinds and activations in place.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dims = 1 + seed % 3

    def each(*values: int) -> tuple[int, ...]:
        return tuple(draw.choice(values) for _ in range(dims))

    groups, channels = draw.choice((1, 2)), draw.choice((2, 4))
    size = {1: (9,), 2: (5, 6), 3: (4, 3, 4)}[dims]
    x = torch.randn(examples, channels, *size, dtype=torch.float64)
    same = draw.random() < 0.3
    layers: list[nn.Module] = [
        CONVOLUTIONS[dims](
            channels,
            4,
            each(1, 2, 3),
            stride=1 if same else each(1, 2),
            padding="same" if same else each(1, 2),
            dilation=each(1, 2) if dims < 3 else 1,
            groups=groups,
            bias=draw.random() < 0.7,
            padding_mode=draw.choice(("zeros", "zeros", "circular" if not same else "reflect")),
        ),
        draw.choice((BATCH_NORMS[dims](4), nn.GroupNorm(2, 4), nn.Identity())),
        draw.choice((nn.ReLU(inplace=True), nn.Tanh())),
        TRANSPOSED[dims](
            4, 2, each(2, 3), stride=2, padding=each(0, 1), output_padding=each(0, 1), groups=draw.choice((1, 2))
        ),
        nn.Sigmoid(),
        nn.Flatten(2),
    ]
    positions = nn.Sequential(*layers).double()(x).shape[2]
    layers += [nn.Linear(positions, 3, bias=draw.random() < 0.7), nn.LayerNorm(draw.choice(((3,), (2, 3)))), nn.Tanh()]
    layers += [nn.Flatten(), nn.Linear(6, classes)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.copy_(
                torch.randn_like(tensor) if isinstance(tensor, nn.Parameter) else torch.rand_like(tensor) + 0.5
            )
    return model.eval(), x


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``∂f(x)/∂θ`` ``[N, *output, *θ]`` by parameter, by ``torch.func``."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    made: dict[str, Tensor] = jacrev(lambda given: functional_call(model, given, (x,)))(parameters)
    return made
