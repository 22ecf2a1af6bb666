"""Parameters of which each process holds a shard."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from randbp.curvature import EKFAC, KFAC


@pytest.fixture
def mesh():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    destroy_process_group()


class Padded(nn.Conv2d):
    def forward(self, input):
        return F.conv2d(F.pad(input, (0, 1, 1, 0)), self.weight, self.bias)


def network(kind):
    torch.manual_seed(0)
    size = 5 if kind is Padded else 4
    layers = kind(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * size**2, 6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def train(model, optimizer, steps):
    for step in range(steps):
        cross_entropy(model(torch.ones(8, 2, 6, 6, dtype=torch.float64)), torch.arange(8) % 3).backward()
        optimizer.zero_grad()  # a pass that is discarded
        for part in range(2):
            generator = torch.Generator().manual_seed(2 * step + part)
            x = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
            (cross_entropy(model(x), torch.arange(8) % 3) / 2).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [nn.Conv2d, Padded])
@pytest.mark.parametrize("make", [KFAC, EKFAC, partial(EKFAC, approximation="expand")])
def test_a_sharded_model_steps_as_a_whole_one(mesh, kind, make):
    whole, sharded = network(kind), network(kind)
    for layer in (sharded[0], sharded[3], sharded):
        fully_shard(layer, mesh=mesh)
    options = {"lr": 0.1, "factor_every": 1, "inverse_every": 2}
    train(whole, make(whole, **options), 4)
    optimizer = make(sharded, **options)
    train(sharded, optimizer, 4)
    assert not optimizer.left_plain
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter, DTensor)
        torch.testing.assert_close(parameter.full_tensor(), whole.get_parameter(name), rtol=1e-9, atol=1e-11)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    train(sharded, optimizer, 1)
